"""SIGSTOP of one worker of two for some seconds: a pause of its machine, a stalled disk."""

from __future__ import annotations

import itertools
from dataclasses import replace

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import PACE, Ground
from cardialign.cluster.drills.measures import deaths, judge_run, require, set_at
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.runs.planned import plan_of, stepped, write_plan

SECONDS = 5.0


def run(ground: Ground) -> Outcome:
    expected = ground.undisturbed_on_ray(2)
    run_dir, outcome = ground.run_dir("worker-stopped"), Outcome()
    write_plan(plan_of(run_dir), (replace(ground.fault("stop", rank=1), seconds=SECONDS),), PACE)
    command = ground.pretrain(run_dir, workers=2)
    answer = command.finished()
    at = set_at(plan_of(run_dir))
    require(answer["restarts"] == 0, f"the run was restarted: {deaths(run_dir)}")
    judge_run(outcome, run_dir, expected, at, 0, command.started)
    times = [when for when, _ in stepped(plan_of(run_dir)) if when > at - 1.0]
    outcome.back = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
    require(outcome.back > SECONDS / 2, "the run went on while one of its ranks stood still")
    outcome.note = f"{SECONDS:.0f} s of that it was stopped"
    return outcome


DRILL = Drill(
    fault=f"SIGSTOP of a worker for {SECONDS:.0f} s",
    promise="The run waits for its rank, restarts nothing, loses no step, and goes on when the rank does.",
    run=run,
    ray=True,
)
