"""The network between the two hosts of a run is cut for some seconds."""

from __future__ import annotations

import itertools
import time

from cardialign.cluster.drills.command import Around
from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import EVERY, MOST_LOST, Ground
from cardialign.cluster.drills.measures import deaths, judge_run, require
from cardialign.cluster.drills.network.hosts import CARD, two_hosts
from cardialign.cluster.drills.outcome import Outcome, SkippedError
from cardialign.cluster.drills.workers.two_nodes import two_nodes
from cardialign.cluster.runs.planned import plan_of, stepped, write_plan

SECONDS, PACE = 5.0, 0.2
GLOO = {"GLOO_SOCKET_IFNAME": CARD}
"""Both hosts have the name of this machine, which is no address of theirs."""


def run(ground: Ground) -> Outcome:
    if ground.address is not None:
        raise SkippedError("the network of a cluster is not ours: tried without --address alone, on hosts of its own")
    expected = ground.undisturbed(2)
    run_dir, outcome = ground.run_dir("network-paused"), Outcome()
    write_plan(plan_of(run_dir), pace=PACE)
    with two_hosts() as hosts, two_nodes(ground.runs, hosts) as nodes:
        around = Around(GLOO, under=hosts.under(0))
        command = ground.pretrain(run_dir, "--address", nodes.address, workers=2, around=around)
        command.until_step(ground.random.randint(EVERY + 1, 6 * EVERY))
        at = time.time()
        hosts.cut()
        time.sleep(SECONDS)
        hosts.mend()
        answer = command.finished()
    judge_run(outcome, run_dir, expected, at, MOST_LOST if answer["restarts"] else 0, command.started)
    times = [when for when, _ in stepped(plan_of(run_dir)) if when > at - 1.0]
    still = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
    require(still > SECONDS / 2, "the run went on while its hosts could not reach each other: nothing was tried")
    restarted = f"restarted: {deaths(run_dir)[-1][1]}" if answer["restarts"] else "not restarted"
    outcome.back, outcome.note = still, f"the cut took {SECONDS:.0f} s of that; {restarted}"
    return outcome


DRILL = Drill(
    fault=f"the network between two hosts is cut for {SECONDS:.0f} s",
    promise="The run waits, or restarts by itself from its last checkpoint, and ends as an undisturbed one, bit for "
    "bit.",
    run=run,
    ray=True,
)
