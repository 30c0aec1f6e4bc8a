"""The end of a file of the newest checkpoint is missing: a copy that broke off, a power cut."""

from __future__ import annotations

from cardialign.cluster.drills.checkpoints.damage import each_kind_damaged
from cardialign.cluster.drills.damage import cut_off
from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.outcome import Outcome


def run(ground: Ground) -> Outcome:
    return each_kind_damaged(ground, "cut", lambda path: cut_off(path, ground.random))


DRILL = Drill(
    fault="truncation of each kind of file of a checkpoint",
    promise="The cut checkpoint is noticed before anything is read from it and put aside with the reason; the run goes "
    "on from the one before, bit for bit.",
    run=run,
)
