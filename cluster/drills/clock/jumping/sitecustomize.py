"""The clock of a drilled process jumps: Python runs this file first where its folder is on PYTHONPATH.

What `time.time` says is shifted by the seconds in the file that CARDIALIGN_DRILL_CLOCK names, whenever they are written
there; so are the times that `os.utime` gives by itself. `time.monotonic` goes on, as it does when a machine's clock is
set. Times that the kernel gives to files that are written are not shifted.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

_plain, _plain_utime, _file = time.time, os.utime, os.environ.get("CARDIALIGN_DRILL_CLOCK", "")
_seen = [float("-inf"), 0.0]
_LOOK_SECONDS = 0.05


def _shift() -> float:
    now = time.monotonic()
    if now - _seen[0] > _LOOK_SECONDS:
        _seen[0] = now
        with contextlib.suppress(OSError, ValueError), open(_file) as file:
            _seen[1] = float(file.read())
    return _seen[1]


def _time() -> float:
    return _plain() + _shift()


def _time_ns() -> int:
    return int(1e9 * _time())


def _utime(path: Any, times: tuple[float, float] | None = None, **more: Any) -> None:
    if times is None and not more.get("ns"):
        times = (_time(), _time())
    _plain_utime(path, times, **more)


if _file:
    time.time, time.time_ns, os.utime = _time, _time_ns, _utime
