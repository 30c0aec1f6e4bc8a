"""A bit that flips in the newest checkpoint: a bad disk, a bad cable, a bad copy."""

from __future__ import annotations

from cardialign.cluster.drills.checkpoints.damage import each_kind_damaged
from cardialign.cluster.drills.damage import flip_bit
from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.outcome import Outcome


def run(ground: Ground) -> Outcome:
    return each_kind_damaged(ground, "bit-flipped", lambda path: flip_bit(path, ground.random))


DRILL = Drill(
    fault="bit flip in each kind of file of a checkpoint",
    promise="The damaged checkpoint is noticed before anything is read from it and put aside with the reason; the run "
    "goes on from the one before, bit for bit.",
    run=run,
)
