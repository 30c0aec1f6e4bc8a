"""Two commands on one run directory."""

from __future__ import annotations

import time

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import PACE, Ground
from cardialign.cluster.drills.measures import judge_run, require
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.runs.planned import plan_of, write_plan
from cardialign.data_shards.errors import UsageError


def run(ground: Ground) -> Outcome:
    expected = ground.undisturbed_on_ray()
    run_dir, outcome = ground.run_dir("two-drivers"), Outcome()
    write_plan(plan_of(run_dir), pace=4 * PACE)
    command = ground.pretrain(run_dir)
    command.until_step(5)
    at = time.time()
    answer = ground.pretrain(run_dir).finished(UsageError.exit_code)
    outcome.detected = time.time() - at
    require(
        f"in use by process {command.process.pid} on" in answer.get("problem", ""),
        f"the refusal does not name who holds the run: {answer.get('problem')}",
    )
    require(command.process.poll() is None, "the first one ended before the second was refused: nothing was tried")
    command.finished()
    return judge_run(outcome, run_dir, expected, at, 0, command.started)


DRILL = Drill(
    fault="a second command on the run directory",
    promise="The second is refused, naming the process and host of the first, which does not notice.",
    run=run,
    ray=True,
)
