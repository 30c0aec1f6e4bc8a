"""How long something may take on a machine that others use, too."""

from __future__ import annotations

import contextlib
import os
import time

from cardialign.data_shards.cpus import usable_cpus


class Patience:
    """`seconds` of a machine whose cores are free: where twice as many processes want to run as it has cores, a second
    counts as half of one. So a busy machine breaks no promise, and what hangs is still found."""

    def __init__(self, seconds: float) -> None:
        self.seconds = self._left = seconds
        self._seen, self._cpus = time.monotonic(), usable_cpus()

    def over(self) -> bool:
        """Whether they have passed; to be asked again and again while one waits."""
        now = time.monotonic()
        self._left -= (now - self._seen) / slowness(self._cpus)
        self._seen = now
        return self._left <= 0


def slowness(cpus: int | None = None) -> float:
    """How many times as long as on a free machine something may take here and now; at least 1."""
    return max(1.0, _waiting() / (usable_cpus() if cpus is None else cpus))


def _waiting() -> float:
    """Processes that run or want to, mean of the last minute."""
    with contextlib.suppress(OSError):  # the system does not say it
        return os.getloadavg()[0]
    return 0.0
