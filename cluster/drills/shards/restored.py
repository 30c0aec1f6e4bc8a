"""A shard that is damaged during the epoch, and put back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from cardialign.cluster.drills.ground import PACE, Ground
from cardialign.cluster.drills.loop import Ended, Loop
from cardialign.cluster.drills.measures import require
from cardialign.cluster.drills.outcome import BrokenError, Outcome
from cardialign.cluster.drills.traces import judge_trace, judge_way_back
from cardialign.cluster.runs.planned import plan_of, stepped, write_plan

STRICT = "data.max_bad_fraction=0"
"""No record may be replaced: then the run is to stop rather than to be another one."""


def damaged_and_restored(ground: Ground, name: str, damage: Callable[[Path], None], *, noticed: bool = True) -> Outcome:
    """Damage a shard of a copy of the set while a run reads it. The run ends in words that name the shard, goes on
    with it once it is back, and is the undisturbed run.

    noticed: the running one has to see it; otherwise, who has the file open may go on with what it was, and a new
    start has to see it.
    """
    run_dir, outcome = ground.run_dir(name), Outcome()
    shards = run_dir.with_name(f"{run_dir.name}-shards")
    shutil.copytree(ground.shards, shards)
    shard = sorted(shards.glob("shard-*.tar"))[1]
    whole = shard.read_bytes()
    plan = plan_of(run_dir)
    write_plan(plan, pace=PACE)
    config = ground.config(f"data.shards={shards}", STRICT)
    with Loop(config, run_dir, plan=plan) as loop:
        step = ground.step()
        while not any(done >= step for _, done in stepped(plan)):
            if loop.ended:
                raise BrokenError(f"the run ended before the fault: {loop.wait()}")
            time.sleep(0.01)
        at = time.time()
        damage(shard)
        ended = loop.wait()
    if noticed or not ended.done:
        _told(ended, shard)
        outcome.detected = ended.at - at
    again = Loop(config, run_dir, plan=plan).wait()
    if noticed or not ended.done:
        _told(again, shard)
    shard.unlink(missing_ok=True)
    shard.write_bytes(whole)
    last = Loop(config, run_dir, plan=plan).wait()
    require(last.done, f"with the shard back the run did not go on: {last.said}")
    judge_trace(outcome, run_dir, ground.undisturbed())
    judge_way_back(outcome, plan, ended.at)
    if ended.done:
        outcome.lost, outcome.back = 0, None
    outcome.note = f"{shard.name}: " + (ended.said.splitlines()[0] if ended.said else "the run had it open and went on")
    return outcome


def _told(ended: Ended, shard: Path) -> None:
    require(ended.codes == (1,), f"the damaged shard did not end the run: {ended.codes} {ended.said}")
    require(shard.name in ended.said, f"the shard is not named: {ended.said}")
    require("remedy" in ended.said, f"no way out is told: {ended.said}")
