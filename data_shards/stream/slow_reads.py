"""A watch over the reads of a stream: one that takes too long is reported while it still hangs, with shard, rank and
seconds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlowRead:
    """A read of `shard` on `rank` that has taken `seconds`: so far (`waiting`), in all (`done`), or until the stream
    was closed without it (`left`)."""

    shard: str
    rank: int
    seconds: float
    state: Literal["waiting", "done", "left"]


@dataclass
class _Running:
    shard: str
    started: float
    report_at: float
    reported: bool = False


def log_slow_read(read: SlowRead) -> None:
    log.warning(
        "action=slow-read shard=%s rank=%d seconds=%.1f state=%s", read.shard, read.rank, read.seconds, read.state
    )


class SlowReadWatch:
    """Bracket every read with `begin(shard)` and `end()`; `threshold` seconds later, then at every doubling, `report`
    is called from a thread of the watch, and once more when the read ends. `count`: reads reported so far. `close()`
    ends the thread."""

    def __init__(self, threshold: float, rank: int, report: Callable[[SlowRead], None] = log_slow_read) -> None:
        self._threshold, self._rank, self._report = threshold, rank, report
        self._running: dict[int, _Running] = {}
        self._closed = threading.Event()
        self.count = 0
        self._thread = threading.Thread(target=self._watch, name="shard-stream-watch", daemon=True)
        self._thread.start()

    def begin(self, shard: str) -> None:
        now = time.perf_counter()
        self._running[threading.get_ident()] = _Running(shard, now, now + self._threshold)

    def end(self) -> None:
        running = self._running.pop(threading.get_ident())
        if running.reported:
            self._report(SlowRead(running.shard, self._rank, time.perf_counter() - running.started, "done"))

    def report_left(self) -> None:
        """Report every read that is still running, which nobody will wait for."""
        for running in list(self._running.values()):
            self._report(SlowRead(running.shard, self._rank, time.perf_counter() - running.started, "left"))

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._threshold / 4, 1.0)):
            now = time.perf_counter()
            for running in list(self._running.values()):
                if now < running.report_at:
                    continue
                if not running.reported:
                    self.count += 1
                running.reported, running.report_at = True, running.started + 2 * (now - running.started)
                self._report(SlowRead(running.shard, self._rank, now - running.started, "waiting"))
