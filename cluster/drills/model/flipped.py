"""A bit that flips in a file of an exported encoder."""

from __future__ import annotations

from pathlib import Path

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.model.damage import each_file_damaged
from cardialign.cluster.drills.outcome import Outcome


def run(ground: Ground) -> Outcome:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[ground.random.randrange(len(content))] ^= 1 << ground.random.randrange(8)
        path.write_bytes(content)

    return each_file_damaged(ground, "model-flipped", flip)


DRILL = Drill(
    fault="bit flip in each file of an exported encoder",
    promise="The encoder is refused by the name of the file before anything of it is used.",
    run=run,
)
