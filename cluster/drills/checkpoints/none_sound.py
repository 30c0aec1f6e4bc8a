"""Every checkpoint of a run is damaged: nobody may begin it again unasked."""

from __future__ import annotations

from pathlib import Path

from cardialign.cluster.drills.checkpoints.half_done import copy_of
from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.measures import require
from cardialign.cluster.drills.outcome import Outcome
from cardialign.pretrain.run.files import LOCK
from cardialign.pretrain.training.checkpoints.files import MANIFEST, committed


def run(ground: Ground) -> Outcome:
    run_dir = copy_of(ground, "none-sound")
    for _, path in committed(run_dir):
        (path / MANIFEST).unlink()
    before = _content(run_dir)
    ended = ground.loop(run_dir)
    require(ended.codes == (1,), f"the start was not refused: {ended.codes} {ended.said}")
    require("checkpoint" in ended.said and "remedy" in ended.said, f"no words for it: {ended.said}")
    require(_content(run_dir) == before, "the refused start changed something in the run directory")
    return Outcome(note="refused, and nothing changed")


def _content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK
    }


DRILL = Drill(
    fault="no checkpoint of the run is sound",
    promise="The run is refused in words, and nothing in its directory changes: it does not begin again unasked.",
    run=run,
)
