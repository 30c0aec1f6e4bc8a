"""Ctrl-C and what a scheduler sends to end a command: one wish, told in one sentence.

A library may swallow the exception that a signal raises (an import that goes on without half of a module) or turn it
into one of its own. So the wish is remembered, too: what fails after it is no defect.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SAME_SIGNAL_SECONDS = 0.2
"""`timeout` signals its process, and then the process's group: that is one wish, not two."""
_SIGNAL_BASE = 128
"""A shell's exit code of a program that ended by a signal, less the signal's number."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: whatever ends well on Ctrl-C ends well on these."""


class Interrupts:
    """Which signal asked the command to end, if one did."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._last = -SAME_SIGNAL_SECONDS
        self._process = os.getpid()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first one raises KeyboardInterrupt, of SIGTERM and SIGHUP its kin; the second of these ends at once."""
        now = time.monotonic()
        same, self._last = now - self._last < SAME_SIGNAL_SECONDS, now
        again, other_process = self.signal is not None, os.getpid() != self._process
        if number != signal.SIGINT and (other_process or (again and not same)):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.signal = self.signal or signal.Signals(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if not (again and same):
            raise Terminated

    @property
    def told(self) -> tuple[str, int]:
        """The sentence and the exit code; of an interrupt that no signal asked for, those of Ctrl-C."""
        number = self.signal or signal.SIGINT
        return "interrupted" if number == signal.SIGINT else f"interrupted by {number.name}", _SIGNAL_BASE + number

    @contextlib.contextmanager
    def listening(self) -> Iterator[Interrupts]:
        """The signals are ours in here, but for those that somebody else has taken or that are ignored (`nohup`).

        Only the main thread can say so; elsewhere nothing changes.
        """
        plain: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int] = {
            signal.SIGINT: signal.default_int_handler,
            signal.SIGTERM: signal.SIG_DFL,
            signal.SIGHUP: signal.SIG_DFL,
        }
        ours: list[signal.Signals] = []
        if threading.current_thread() is threading.main_thread():
            ours = [number for number, handler in plain.items() if signal.getsignal(number) == handler]
        try:
            for number in ours:
                signal.signal(number, self.on_signal)
            yield self
        finally:
            for number in ours:
                signal.signal(number, plain[number])
