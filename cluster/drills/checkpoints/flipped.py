"""A bit that flips in the newest checkpoint: a bad disk, a bad cable, a bad copy."""

from __future__ import annotations

from pathlib import Path

from cardialign.cluster.drills.checkpoints.damage import each_kind_damaged
from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.outcome import Outcome


def run(ground: Ground) -> Outcome:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[ground.random.randrange(len(content))] ^= 1 << ground.random.randrange(8)
        path.write_bytes(content)

    return each_kind_damaged(ground, "bit-flipped", flip)


DRILL = Drill(
    fault="bit flip in each kind of file of a checkpoint",
    promise="The damaged checkpoint is noticed before anything is read from it and put aside with the reason; the run "
    "goes on from the one before, bit for bit.",
    run=run,
)
