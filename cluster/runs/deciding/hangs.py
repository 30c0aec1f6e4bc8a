"""When a worker group hangs: no rank has moved for too long, though nothing died.

What is judged is progress, never life: the thread that beats goes on beating when the loop is stuck. A rank that hangs
lets no other come further than to the next exchange with it, so that one rank that moves is enough for all to be well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardialign.pretrain.run.files import CHECKPOINTS, METRICS, WORKERS

START_TIMES = 2.0
"""So many times the limit until the first step is done: weights are read, kernels are compiled."""
SLOW_TIMES = 3.0
"""A group may stand still for so many times as long as it has before, without a hang, at a step of its own."""
LONGEST_LOOK = 15.0
"""More than this does not count between two looks: the machine was suspended, or a clock has jumped."""


def signs(run_dir: Path) -> list[Any]:
    """What changes in a run directory while the work goes on: what the ranks say (`workers/rank-K.moved`, which asks
    the disk for no space), the trace, and the checkpoint that is being written."""
    folder = run_dir / CHECKPOINTS
    parts = (each for top in folder.glob(".tmp-*") for each in _below(top))
    found: list[Any] = []
    for path in (run_dir / METRICS, folder, *sorted((run_dir / WORKERS).glob("rank-*.moved")), *parts):
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((path.name, status.st_size, status.st_ino, status.st_mtime_ns))
    return found


def _below(folder: Path) -> Iterator[Path]:
    """Everything in a folder that others write in, and remove from, meanwhile: a conversion has folders of its own."""
    for path, folders, files in os.walk(folder):  # which passes over what is gone; a glob of pathlib raises
        yield from (Path(path, name) for name in (*folders, *files))


@dataclass
class Hangs:
    """Of one worker group after another: `begin` with each, `look` again and again while it trains.

    limit_seconds: how long no rank may move. read: the signs.
    """

    limit_seconds: float
    read: Callable[[], list[Any]]
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A new group has entered the run."""
        self._signs: list[Any] | None = None
        self._looked = self.now()
        self._still = self._longest = 0.0
        self._trace: tuple[int, int] | None = None
        self._stepped = False

    @property
    def limit(self) -> float:
        """Of this group, now."""
        return max(self.limit_seconds * (1.0 if self._stepped else START_TIMES), SLOW_TIMES * self._longest)

    @property
    def still_seconds(self) -> float:
        """How long no rank has moved, of the time in which this process looked."""
        return self._still

    def look(self) -> bool:
        """Whether the group hangs."""
        now = self.now()
        passed, self._looked = now - self._looked, now
        found = self.read()
        if found != self._signs:
            if self._stepped:
                self._longest = max(self._longest, self._still)
            self._signs, self._still = found, 0.0
            self._has_stepped(found)
            return False
        self._still += min(max(passed, 0.0), LONGEST_LOOK)
        return self._still > self.limit

    def _has_stepped(self, found: list[Any]) -> None:
        """A step is done once the trace grows that this group has opened: opening it makes another file of it."""
        size, inode = next(((size, inode) for name, size, inode, _ in found if name == METRICS), (0, 0))
        if self._trace is not None and self._trace[1] == inode and size > self._trace[0]:
            self._stepped = True
        self._trace = (size, inode)
