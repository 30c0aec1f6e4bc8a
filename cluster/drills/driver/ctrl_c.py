"""Ctrl-C: SIGINT to the command."""

from __future__ import annotations

import signal

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import MOST_LOST, PACE, Ground
from cardialign.cluster.drills.measures import judge_run, stopped_once
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.runs.planned import plan_of, write_plan
from cardialign.data_shards.errors import INTERRUPTED


def run(ground: Ground) -> Outcome:
    expected = ground.undisturbed_on_ray()
    run_dir, outcome = ground.run_dir("ctrl-c"), Outcome()
    write_plan(plan_of(run_dir), pace=PACE)
    command = ground.pretrain(run_dir)
    at, outcome.detected = stopped_once(command, ground.step(), signal.SIGINT, INTERRUPTED, seconds=60)
    again = ground.pretrain(run_dir)
    again.finished()
    return judge_run(outcome, run_dir, expected, at, MOST_LOST, command.started, again.started)


DRILL = Drill(
    fault="Ctrl-C",
    promise="It ends with 130, and the same command goes on from the last checkpoint.",
    run=run,
    ray=True,
)
