"""kill -9 of the command itself; its Ray and its workers lose their driver."""

from __future__ import annotations

import signal
import time

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import MOST_LOST, PACE, Ground
from cardialign.cluster.drills.measures import judge_run, stopped_once
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.runs.planned import plan_of, write_plan


def run(ground: Ground) -> Outcome:
    expected = ground.undisturbed_on_ray()
    run_dir, outcome = ground.run_dir("driver-killed"), Outcome()
    write_plan(plan_of(run_dir), pace=PACE)
    command = ground.pretrain(run_dir)
    at, _ = stopped_once(command, ground.step(), signal.SIGKILL, -signal.SIGKILL)
    again = ground.pretrain(run_dir)  # at once: workers of the first may still live, and write
    again.finished()
    judge_run(outcome, run_dir, expected, at, MOST_LOST, command.started, again.started)
    outcome.note = f"started again {again.started - at:.1f} s later, {time.time() - at:.0f} s to its end"
    return outcome


DRILL = Drill(
    fault="kill -9 of the command",
    promise="The same command, given at once, takes over: workers of the old one that still live are fenced out, the "
    "trace is whole, and nothing is left behind.",
    run=run,
    ray=True,
)
