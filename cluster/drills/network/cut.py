"""The network between the two hosts of a run is cut for good; both live on."""

from __future__ import annotations

import time

from cardialign.cluster.drills.command import Around
from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import EVERY, MOST_LOST, Ground
from cardialign.cluster.drills.leftovers import leftovers
from cardialign.cluster.drills.measures import require
from cardialign.cluster.drills.network.hosts import two_hosts
from cardialign.cluster.drills.network.paused import GLOO
from cardialign.cluster.drills.outcome import Outcome, SkippedError
from cardialign.cluster.drills.patience import slowness
from cardialign.cluster.drills.traces import judge_rounded_trace, judge_way_back
from cardialign.cluster.drills.workers.node_lost import SHRINKS_WITHIN
from cardialign.cluster.drills.workers.two_nodes import two_nodes
from cardialign.cluster.runs.planned import plan_of, write_plan
from cardialign.cluster.watching.decisions import read_decisions
from cardialign.pretrain.training.checkpoints.condition import examine
from cardialign.pretrain.training.checkpoints.files import committed

PACES = (0.3, 0.05)
"""Seconds of a step: with both hosts, and with one."""


def run(ground: Ground) -> Outcome:
    if ground.address is not None:
        raise SkippedError("the network of a cluster is not ours: tried without --address alone, on hosts of its own")
    expected = ground.undisturbed(2)
    run_dir, outcome = ground.run_dir("network-cut"), Outcome()
    write_plan(plan_of(run_dir), pace=PACES[0])
    with two_hosts() as hosts, two_nodes(ground.runs, hosts) as nodes:
        around = Around(GLOO, under=hosts.under(0))
        command = ground.pretrain(run_dir, "--address", nodes.address, workers="1-2", around=around)
        command.until_step(ground.random.randint(EVERY + 1, 3 * EVERY))
        write_plan(plan_of(run_dir), pace=PACES[1])
        at = time.time()
        hosts.cut()
        command.until(lambda: len(read_decisions(run_dir)) > 0, "the decision to go on with one worker")
        since, within = command.until_step_again(read_decisions(run_dir)[0].time), SHRINKS_WITHIN * slowness()
        answer = command.finished()
    decisions = read_decisions(run_dir)
    require([(each.before, each.after) for each in decisions] == [(2, 1)], f"decided was {decisions}")
    require("is gone" in decisions[0].cause and answer["restarts"] == 1, f"told was {decisions[0].told()}, {answer}")
    require(since - at < within, f"it went on after {since - at:.0f} s, within {within:.0f} is promised")
    outcome.detected = decisions[0].time - at
    judge_way_back(outcome, plan_of(run_dir), at)
    require((outcome.lost or 0) <= MOST_LOST, f"{outcome.lost} steps were done again, {MOST_LOST} at most are promised")
    judge_rounded_trace(outcome, run_dir, expected)
    bad = [found.said() for _, path in committed(run_dir) if (found := examine(path)).condition != "verified"]
    require(not bad, f"the host that was cut off has damaged: {bad}")
    outcome.leftovers = leftovers(run_dir, plan_of(run_dir), command.started)
    require(not outcome.leftovers, f"left behind: {', '.join(outcome.leftovers[:4])}")
    outcome.note = f"one worker from step {decisions[0].step}; losses to 1e-6"
    return outcome


DRILL = Drill(
    fault="the network between two hosts is cut for good",
    promise=f"The run goes on with one worker within {SHRINKS_WITHIN:.0f} s, though the other host lives on with its "
    "own: that one damages nothing. The same records in every batch, the losses to rounding.",
    run=run,
    ray=True,
)
