"""Progress of long work: a bar with an ETA on a terminal, a plain line now and then elsewhere.

Always on stderr: stdout belongs to results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from cardialign.data_shards.shown import shown

PLAIN_SECONDS = 10.0
BAR_SECONDS = 0.1


def clock(seconds: float) -> str:
    """Seconds as `45s`, `3m05s` or `2h10m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """One piece of work with a known or unknown `total`. Call `update(done, total)`.

    Use it as a context manager, so that the bar is finished. `now` is a parameter so that tests need no sleep.
    """

    def __init__(
        self, label: str, total: int = 0, *, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.label, self.total = label, total
        self.stream = stream or sys.stderr
        self.bar = bool(getattr(self.stream, "isatty", lambda: False)())
        self.now = now
        self.started = now()
        self.first: tuple[float, int] | None = None
        self.shown = self.started if not self.bar else float("-inf")
        self.done = 0
        self.open_line = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, done: int, total: int | None = None, rejected: int = 0) -> None:
        """The shape of callback that the floors below take."""
        self.update(done, total, f"{rejected} rejected" if rejected else "")

    def update(self, done: int, total: int | None = None, figures: str = "") -> None:
        """`done` of `total` so far; `figures` is short free text (loss, rate)."""
        self.done = done
        self.total = total or self.total
        now = self.now()
        if self.first is None:
            self.first = (now, done)
        finished = bool(self.total) and done >= self.total
        if now - self.shown < (BAR_SECONDS if self.bar else PLAIN_SECONDS) and not (finished and self.bar):
            return
        self.shown = now
        self._write(self._text(now, figures))

    def _text(self, now: float, figures: str) -> str:
        assert self.first is not None
        started, before = self.first
        rate = (self.done - before) / (now - started) if now > started and self.done > before else 0.0
        counted = f"{self.done}/{self.total}" if self.total else str(self.done)
        eta = (
            f"  ETA {clock((self.total - self.done) / rate)}" if self.total and rate and self.done < self.total else ""
        )
        share = min(1.0, self.done / self.total) if self.total else 0.0
        drawn = f" [{'#' * round(24 * share):<24}]" if self.bar and self.total else ""
        return f"{self.label}{drawn} {counted}{'  ' + figures if figures else ''}  {clock(now - self.started)}{eta}"

    def _write(self, text: str) -> None:
        text = shown(text)
        if self.bar:
            self.stream.write(f"\r\x1b[2K{text}")
            self.open_line = True
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def close(self) -> None:
        if self.open_line:
            self.stream.write("\n")
            self.stream.flush()
            self.open_line = False


def two_stages(listing: Progress, building: Progress) -> Callable[[int, int, int], None]:
    """What `build_shards` takes to tell its progress.

    Records are listed while their number is not known; then they are built, with an ETA of their own.
    """

    def show(done: int, total: int, rejected: int) -> None:
        if total == 0:
            listing(done)
        else:
            listing.close()
            building(done, total, rejected)

    return show
