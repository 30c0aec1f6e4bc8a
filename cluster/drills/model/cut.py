"""The end of a file of an exported encoder is missing."""

from __future__ import annotations

from cardialign.cluster.drills.damage import cut_off
from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.model.damage import each_file_damaged
from cardialign.cluster.drills.outcome import Outcome


def run(ground: Ground) -> Outcome:
    return each_file_damaged(ground, "model-cut", lambda path: cut_off(path, ground.random))


DRILL = Drill(
    fault="truncation of each file of an exported encoder",
    promise="The encoder is refused by the name of the file before anything of it is used.",
    run=run,
)
