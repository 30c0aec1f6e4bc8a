"""A shard is deleted while it is read."""

from __future__ import annotations

from pathlib import Path

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.drills.shards.restored import damaged_and_restored


def run(ground: Ground) -> Outcome:
    return damaged_and_restored(ground, "shard-deleted", Path.unlink, noticed=False)


DRILL = Drill(
    fault="a shard is deleted during the epoch",
    promise="The run goes on with the file that it has open, or ends naming the shard; with the shard back it is the "
    "undisturbed one.",
    run=run,
)
