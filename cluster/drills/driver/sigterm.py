"""SIGTERM to the command: preemption of a batch system, `docker stop`, a service that is ended."""

from __future__ import annotations

import signal
from pathlib import Path

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import PACE, Ground
from cardialign.cluster.drills.measures import judge_run, require, stopped_once
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.runs.planned import plan_of, write_plan
from cardialign.data_shards.errors import STOPPED


def run(ground: Ground) -> Outcome:
    expected = ground.undisturbed_on_ray()
    run_dir, outcome = ground.run_dir("sigterm"), Outcome()
    write_plan(plan_of(run_dir), pace=PACE)
    command = ground.pretrain(run_dir)
    at, outcome.detected = stopped_once(command, ground.step(), signal.SIGTERM, STOPPED)
    answer = command.answer
    require(answer.get("stopped") is True, f"the command does not say that it was stopped: {answer}")
    require(Path(answer["checkpoint"]).name == f"step-{answer['steps']:08d}", f"no checkpoint of its step: {answer}")
    again = ground.pretrain(run_dir)
    again.finished()
    return judge_run(outcome, run_dir, expected, at, 0, command.started, again.started)


DRILL = Drill(
    fault="SIGTERM to the command",
    promise="It ends with 75 at a checkpoint of its last step, and the same command goes on from there: no step lost.",
    run=run,
    ray=True,
)
