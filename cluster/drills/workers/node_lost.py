"""A node is lost with its worker, and comes back: the run goes on with what there is, and grows again."""

from __future__ import annotations

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import EVERY, MOST_LOST, Ground
from cardialign.cluster.drills.leftovers import leftovers
from cardialign.cluster.drills.measures import require
from cardialign.cluster.drills.outcome import Outcome, SkippedError
from cardialign.cluster.drills.patience import slowness
from cardialign.cluster.drills.traces import judge_rounded_trace, judge_way_back
from cardialign.cluster.drills.workers.two_nodes import two_nodes
from cardialign.cluster.runs.planned import plan_of, write_plan
from cardialign.cluster.watching.decisions import Decision, read_decisions

SHRINKS_WITHIN = 45.0
"""Seconds of a free machine until one worker does what two did."""
PACES = (0.3, 3.0, 0.05)
"""Seconds of a step: with both nodes, while one is away, with both again."""
GROW = ("--grow-minutes", "0.1")


def run(ground: Ground) -> Outcome:
    if ground.address is not None:
        raise SkippedError("it takes a node down: tried without --address alone, on a Ray of its own")
    expected = ground.undisturbed(2)
    run_dir, outcome = ground.run_dir("node-lost"), Outcome()
    write_plan(plan_of(run_dir), pace=PACES[0])
    with two_nodes(ground.runs) as nodes:
        command = ground.pretrain(
            run_dir, "--address", nodes.address, *GROW, workers="1-2"
        )  # fmt: skip
        command.until_step(ground.random.randint(EVERY + 1, 3 * EVERY))
        write_plan(plan_of(run_dir), pace=PACES[1])
        at = nodes.node_is_lost()
        command.until(lambda: len(read_decisions(run_dir)) > 0, "the decision to go on with one worker")
        since, within = command.until_step_again(at), SHRINKS_WITHIN * slowness()
        write_plan(plan_of(run_dir), pace=PACES[2])
        nodes.node_starts()
        answer = command.finished()
    decisions = read_decisions(run_dir)
    require(_sizes(decisions) == [(2, 1), (1, 2)], f"decided was {[each.told() for each in decisions]}")
    require(decisions[1].planned and not decisions[0].planned, "the run grew in the middle of its steps")
    require(answer["restarts"] == 1, f"one group was lost, the command says {answer['restarts']}")
    outcome.detected = decisions[0].time - at
    require(since - at < within, f"it went on after {since - at:.0f} s, within {within:.0f} is promised")
    judge_way_back(outcome, plan_of(run_dir), at)
    require((outcome.lost or 0) <= MOST_LOST, f"{outcome.lost} steps were done again, {MOST_LOST} at most are promised")
    judge_rounded_trace(outcome, run_dir, expected)
    outcome.leftovers = leftovers(run_dir, plan_of(run_dir), command.started)
    require(not outcome.leftovers, f"left behind: {', '.join(outcome.leftovers[:4])}")
    outcome.note = f"one worker from step {decisions[0].step}, two again from {decisions[1].step}; losses to 1e-6"
    return outcome


def _sizes(decisions: list[Decision]) -> list[tuple[int, int]]:
    return [(each.before, each.after) for each in decisions]


DRILL = Drill(
    fault="a node of two is lost, and comes back",
    promise=f"The run goes on with one worker within {SHRINKS_WITHIN:.0f} s, and with two again from a checkpoint on, "
    "so that no step is lost to that; the same records in every batch, the losses to rounding.",
    run=run,
    ray=True,
)
