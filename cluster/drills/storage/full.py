"""The disk of the run directory is full."""

from __future__ import annotations

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.drills.storage.small_disk import fill, spoilt_and_mended


def run(ground: Ground) -> Outcome:
    return spoilt_and_mended(ground, "full", fill, lambda disk: (disk / "filler").unlink(), "0 bytes free")


DRILL = Drill(
    fault="the disk of the run is full",
    promise="Steps go on up to the next checkpoint; then the run ends saying what to free, with every committed "
    "checkpoint whole, and goes on bit for bit when there is room.",
    run=run,
)
