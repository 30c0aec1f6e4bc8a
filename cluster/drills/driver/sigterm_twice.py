"""SIGTERM twice: whoever asks a second time cannot wait for a checkpoint."""

from __future__ import annotations

import signal
import time

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import MOST_LOST, PACE, Ground
from cardialign.cluster.drills.measures import ended_with, judge_run, set_at
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.runs.planned import Fault, plan_of, write_plan
from cardialign.data_shards.errors import STOPPED


def run(ground: Ground) -> Outcome:
    expected = ground.undisturbed_on_ray()
    run_dir, outcome = ground.run_dir("sigterm-twice"), Outcome()
    # Its worker stands still for good: no checkpoint can come of the first signal.
    write_plan(plan_of(run_dir), (Fault("stop", ground.step()),), PACE)
    command = ground.pretrain(run_dir)
    command.until(lambda: (plan_of(run_dir) / "fault-0.json").exists(), "the fault")
    at = set_at(plan_of(run_dir))
    command.signal(signal.SIGTERM)
    time.sleep(1.0)  # the driver takes two signals within 0.2 s for one
    second = command.signal(signal.SIGTERM)
    outcome.detected = ended_with(command, STOPPED, second, seconds=40)
    again = ground.pretrain(run_dir)
    again.finished()
    return judge_run(outcome, run_dir, expected, at, MOST_LOST, command.started, again.started)


DRILL = Drill(
    fault="SIGTERM twice, to a run that hangs",
    promise="The second one ends the command at once, though a rank is stopped for good; the same command goes on from "
    "the last checkpoint, and nothing is left behind.",
    run=run,
    ray=True,
)
