"""SIGSTOP of one worker of two, for good: a rank that never answers again."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import MOST_LOST, PACE, Ground
from cardialign.cluster.drills.measures import deaths, judge_run, require, set_at
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.drills.patience import slowness
from cardialign.cluster.runs.planned import plan_of, write_plan
from cardialign.cluster.watching.decisions import read_decisions
from cardialign.pretrain.run.files import LOGS

LIMIT_SECONDS = 45.0
"""Longer than a step takes; a busy machine gets more."""
MOST_LATE = 60.0
"""Seconds of a free machine behind the limit in which the run has found it."""


def hang(ground: Ground, name: str, kind: Literal["stop", "stand"], at_fault: str, stacks: dict[int, str]) -> Outcome:
    """Rank 1 of two hangs for good. at_fault: what is told of it; stacks: what those of a rank must say."""
    expected = ground.undisturbed_on_ray(2)
    run_dir, outcome = ground.run_dir(name), Outcome()
    write_plan(plan_of(run_dir), (replace(ground.fault("kill", rank=1), kind=kind),), PACE)
    limit = LIMIT_SECONDS * slowness()
    command = ground.pretrain(run_dir, "--hang-minutes", f"{limit / 60:.3f}", workers=2)
    answer = command.finished()
    at = set_at(plan_of(run_dir))
    died, made = deaths(run_dir), read_decisions(run_dir)
    require(len(died) == 1 and answer["restarts"] == 1, f"{len(died)} groups died, the command says {answer}")
    cause = died[0][1]
    require(cause.startswith("hang: ") and at_fault in cause, f"the cause that is told is another: {cause}")
    require([each.cause for each in made] == [cause], f"the decision is another: {made}")
    require((made[0].kind, made[0].failures) == ("retry", 1), f"it counts to no budget: {made[0]}")
    found = {rank: path.read_text() for rank in stacks for path in (run_dir / LOGS).glob(f"*/rank-{rank}.stacks")}
    for rank, text in stacks.items():
        require(text in found.get(rank, ""), f"the stacks of rank {rank} do not say {text!r}: {found.get(rank)}")
    outcome.detected = died[0][0] - at
    require(outcome.detected < limit + MOST_LATE * slowness(), f"it was found {outcome.detected:.0f} s after")
    outcome.note = f"the limit was {limit:.0f} s"
    return judge_run(outcome, run_dir, expected, at, MOST_LOST, command.started)


def run(ground: Ground) -> Outcome:
    return hang(ground, "worker-hung", "stop", "is stopped (SIGSTOP)", {0: "/training/loop.py", 1: "T (stopped)"})


DRILL = Drill(
    fault="SIGSTOP of a worker for good",
    promise="The run finds within its limit that nothing moves, keeps the stacks of all ranks, names the one that is "
    "stopped, goes on from its last checkpoint as after a death, and ends as an undisturbed one, bit for bit.",
    run=run,
    ray=True,
)
