"""A bit that flips in a file of an exported encoder."""

from __future__ import annotations

from cardialign.cluster.drills.damage import flip_bit
from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.model.damage import each_file_damaged
from cardialign.cluster.drills.outcome import Outcome


def run(ground: Ground) -> Outcome:
    return each_file_damaged(ground, "model-flipped", lambda path: flip_bit(path, ground.random))


DRILL = Drill(
    fault="bit flip in each file of an exported encoder",
    promise="The encoder is refused by the name of the file before anything of it is used.",
    run=run,
)
