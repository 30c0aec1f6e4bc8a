"""kill -9 of one worker of two in the middle of a step."""

from __future__ import annotations

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import MOST_LOST, PACE, Ground
from cardialign.cluster.drills.measures import deaths, judge_run, require, set_at
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.runs.planned import plan_of, write_plan


def run(ground: Ground) -> Outcome:
    expected = ground.undisturbed_on_ray(2)
    run_dir, outcome = ground.run_dir("worker-killed"), Outcome()
    write_plan(plan_of(run_dir), (ground.fault("kill", rank=1),), PACE)
    command = ground.pretrain(run_dir, workers=2)
    answer = command.finished()
    at = set_at(plan_of(run_dir))
    died = deaths(run_dir)
    require(len(died) == 1 and answer["restarts"] == 1, f"{len(died)} groups died, the command says {answer}")
    require("rank 1" in died[0][1], f"the cause that is told names no rank 1: {died[0][1]}")
    outcome.detected = died[0][0] - at
    return judge_run(outcome, run_dir, expected, at, MOST_LOST, command.started)


DRILL = Drill(
    fault="kill -9 of a worker, mid-step",
    promise="The run restarts by itself, redoes at most the steps since its last checkpoint, and ends as an "
    "undisturbed one, bit for bit; what died is named.",
    run=run,
    ray=True,
)
