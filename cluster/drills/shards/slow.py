"""One shard answers slowly: a bad disk, a storage node that others keep busy."""

from __future__ import annotations

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.measures import require, set_at
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.drills.patience import slowness
from cardialign.cluster.drills.traces import judge_trace
from cardialign.cluster.runs.planned import Fault, plan_of, write_plan
from cardialign.cluster.watching.state import run_state

SECONDS, MOST_SECONDS = 0.4, 1.2
"""That a read from it takes, and on a busy machine; a record of the tiny set comes in less than a millisecond."""


def run(ground: Ground) -> Outcome:
    outcome, run_dir = Outcome(lost=0), ground.run_dir("shard-slow")
    shard, seconds = sorted(ground.shards.glob("shard-*.tar"))[1].name, min(MOST_SECONDS, SECONDS * slowness())
    plan = plan_of(run_dir)
    write_plan(plan, (Fault("slow", 1, seconds=seconds, file=shard),))
    ended = ground.loop(run_dir, f"data.slow_read_seconds={seconds / 2}", plan=plan)
    require(ended.done, f"the run did not go on: {ended.said or ended.codes}")
    set_at(plan)
    state = run_state(run_dir)
    cause = state.cause
    require(cause is not None and cause.kind == "shard" and cause.shard == shard, f"the cause is said to be {cause}")
    require(state.slowest_shard == shard, f"the slowest shard is said to be {state.slowest_shard}")
    log = (plan / "rank-0.log").read_text(errors="replace")
    require(f"action=slow-read shard={shard}" in log, "the log names no slow read of it")
    judge_trace(outcome, run_dir, ground.undisturbed())
    outcome.note = "" if cause is None else cause.line
    return outcome


DRILL = Drill(
    fault="one shard answers slowly",
    promise="The run goes on, bit for bit, and `status` names the shard as the reason why it is slow.",
    run=run,
)
