"""The disk of the run directory is read-only: what a kernel does with one that has errors.

A mount with open writers refuses to become so: the run is found dead, as after the crash that mostly goes with it.
"""

from __future__ import annotations

import shutil

from cardialign.cluster.drills.checkpoints.half_done import AT, half_done
from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.loop import Loop
from cardialign.cluster.drills.measures import require
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.drills.storage.small_disk import mount, small_disk
from cardialign.cluster.drills.traces import judge_trace
from cardialign.cluster.runs.planned import plan_of, write_plan
from cardialign.pretrain.run.trace import read_trace


def run(ground: Ground) -> Outcome:
    outcome = Outcome()
    plan = plan_of(ground.run_dir("read-only"))
    write_plan(plan)
    with small_disk(plan.with_name("read-only-disk")) as disk:
        run_dir = disk / "run"
        shutil.copytree(half_done(ground), run_dir)
        mount("-o", "remount,ro", str(disk))
        refused = Loop(ground.config(), run_dir, plan=plan).wait()
        require(refused.codes[0] in (1, 2), f"the start ended with {refused.codes}: {refused.said}")
        require("ead-only" in refused.said and "remedy" in refused.said, f"it does not say why: {refused.said}")
        outcome.detected = refused.seconds
        mount("-o", "remount,rw", str(disk))
        require(len(read_trace(run_dir)) == AT, "the refused start changed the trace")
        last = Loop(ground.config(), run_dir, plan=plan).wait()
        require(last.done, f"with the disk writable the run did not go on: {last.said}")
        judge_trace(outcome, run_dir, ground.undisturbed())
    outcome.note = refused.said.splitlines()[0].replace(str(ground.folder), "...")[:160]
    return outcome


DRILL = Drill(
    fault="the disk of the run is read-only at a start",
    promise="The start is refused saying so, nothing is lost, and the run goes on bit for bit when it may write.",
    run=run,
)
