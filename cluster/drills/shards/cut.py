"""A shard loses its second half while it is read."""

from __future__ import annotations

import os
from pathlib import Path

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.drills.shards.restored import damaged_and_restored


def run(ground: Ground) -> Outcome:
    def cut(path: Path) -> None:
        os.truncate(path, ground.random.randrange(1024, path.stat().st_size // 2))

    return damaged_and_restored(ground, "shard-cut", cut)


DRILL = Drill(
    fault="truncation of a shard during the epoch",
    promise="No record is silently left out: the run ends naming the shard, and goes on bit for bit when it is back.",
    run=run,
)
