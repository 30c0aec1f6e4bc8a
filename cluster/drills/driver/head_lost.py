"""The head node of the Ray that a run has joined is lost, and a new one comes: the same command is given again."""

from __future__ import annotations

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import MOST_LOST, PACE, Ground
from cardialign.cluster.drills.measures import ended_with, judge_run, require
from cardialign.cluster.drills.outcome import Outcome, SkippedError
from cardialign.cluster.drills.workers.two_nodes import one_node
from cardialign.cluster.runs.planned import plan_of, write_plan
from cardialign.data_shards.errors import FAILED

ENDS_WITHIN = 120.0
"""Seconds of a free machine; Ray itself gives a head a minute to come back."""


def run(ground: Ground) -> Outcome:
    if ground.address is not None:
        raise SkippedError("it takes the head down: tried without --address alone, on a Ray of its own")
    expected = ground.undisturbed()
    run_dir, outcome = ground.run_dir("ray-head"), Outcome()
    write_plan(plan_of(run_dir), pace=2 * PACE)
    with one_node(ground.runs) as nodes:
        command = ground.pretrain(run_dir, "--address", nodes.address)
        command.until_step(ground.step())
        at = nodes.node_is_lost()
        outcome.detected = ended_with(command, FAILED, at, ENDS_WITHIN)
        problem, remedy = (str(command.answer.get(each, "")) for each in ("problem", "remedy"))
        require(
            "Ray" in problem and remedy, f"it ended without saying that Ray is lost: {problem} {command.said[-300:]}"
        )
        nodes.head_starts()
        again = ground.pretrain(run_dir, "--address", nodes.address)
        again.finished()
    judge_run(outcome, run_dir, expected, at, MOST_LOST, command.started, again.started)
    outcome.note = problem[:160]
    return outcome


DRILL = Drill(
    fault="the head of Ray is lost, and there is a new one",
    promise="The command ends by itself, saying that its Ray is lost; given again, it goes on from the last "
    "checkpoint, bit for bit.",
    run=run,
    ray=True,
)
