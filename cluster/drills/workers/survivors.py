"""kill -9 of one worker of two far from any checkpoint, where neighbours keep copies of each step."""

from __future__ import annotations

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import PACE, STEPS, Ground
from cardialign.cluster.drills.measures import judge_run, require, set_at
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.runs.planned import plan_of, write_plan
from cardialign.cluster.watching.decisions import read_decisions

COPIES = 1


def run(ground: Ground) -> Outcome:
    expected = ground.undisturbed_on_ray(2)
    run_dir, outcome = ground.run_dir("survivors"), Outcome()
    write_plan(plan_of(run_dir), (ground.fault("kill", rank=0),), PACE)
    words = (f"training.neighbour_copy_every={COPIES}", f"training.checkpoint_every={STEPS}")
    command = ground.pretrain(run_dir, *(word for each in words for word in ("--set", each)), workers=2)
    command.finished()
    at = set_at(plan_of(run_dir))
    made = read_decisions(run_dir)
    require(len(made) == 1 and made[0].kind == "retry", f"other decisions were made: {made}")
    cause = made[0].cause
    require(cause.startswith("survivors committed step"), f"the survivor committed nothing: {cause}")
    require("(rank 0's part from rank 1)" in cause, f"it is not told whose part was whose: {cause}")
    outcome.detected = made[0].time - at
    return judge_run(outcome, run_dir, expected, at, COPIES, command.started)


DRILL = Drill(
    fault="kill -9 of a worker, survivors commit",
    promise="The worker that is left commits a checkpoint from the copies that it holds; at most as many steps are "
    "done again as lie between two copies, and the run ends as an undisturbed one, bit for bit.",
    run=run,
    ray=True,
)
