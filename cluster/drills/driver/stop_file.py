"""A file STOP in the run directory: the way to stop a run without its process."""

from __future__ import annotations

import time

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import PACE, Ground
from cardialign.cluster.drills.measures import ended_with, judge_run
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.runs.planned import plan_of, write_plan
from cardialign.data_shards.errors import STOPPED
from cardialign.pretrain.run.files import STOP


def run(ground: Ground) -> Outcome:
    expected = ground.undisturbed_on_ray()
    run_dir, outcome = ground.run_dir("stop-file"), Outcome()
    write_plan(plan_of(run_dir), pace=PACE)
    command = ground.pretrain(run_dir)
    command.until_step(ground.step())
    (run_dir / STOP).touch()
    at = time.time()
    outcome.detected = ended_with(command, STOPPED, at)
    again = ground.pretrain(run_dir)
    again.finished()
    return judge_run(outcome, run_dir, expected, at, 0, command.started, again.started)


DRILL = Drill(
    fault="a file STOP in the run directory",
    promise="The command ends with 75 at a checkpoint of its last step, and goes on when it is given again.",
    run=run,
    ray=True,
)
