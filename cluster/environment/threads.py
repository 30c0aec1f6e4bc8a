"""CPU threads of the processes that share a node."""

from __future__ import annotations

import os

from cardialign.data_shards.cpus import usable_cpus


def threads_of_each(processes: int, asked: int | None = None) -> int:
    """CPU threads for each of `processes` on this machine, at least 1; never more than `asked`."""
    share = max(1, usable_cpus() // max(1, processes))
    return share if asked is None else min(share, asked)


def threads_asked() -> int | None:
    """What the user of the driver set as OMP_NUM_THREADS. In a worker it is no wish of theirs: Ray sets it there."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else None
