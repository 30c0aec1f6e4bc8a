"""A worker group that was given up trains on beside its successor: after a partition, or after a long pause."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import PACE, Ground
from cardialign.cluster.drills.loop import Loop
from cardialign.cluster.drills.measures import require
from cardialign.cluster.drills.outcome import BrokenError, Outcome
from cardialign.cluster.drills.traces import judge_trace
from cardialign.cluster.runs.planned import plan_of, write_plan
from cardialign.data_shards.files import read_json
from cardialign.pretrain.run.files import ATTEMPT
from cardialign.pretrain.training.checkpoints.condition import examine
from cardialign.pretrain.training.checkpoints.files import (
    NOTE,
    QUARANTINE,
    REPLACED,
    TEMPORARY,
    checkpoints_folder,
    committed,
)


def run(ground: Ground) -> Outcome:
    outcome = Outcome()
    for paused in (False, True):
        _beside(ground, paused, outcome)
    outcome.note = "once running on, once stopped and continued"
    return outcome


def _beside(ground: Ground, paused: bool, outcome: Outcome) -> None:
    run_dir = ground.run_dir("given-up")
    plans = [plan_of(run_dir) / name for name in ("old", "new")]
    for plan in plans:
        write_plan(plan, pace=PACE)
    config = ground.config("training.checkpoint_every=2", "training.keep_checkpoints=2")
    old = Loop(config, run_dir, plan=plans[0], locked=False)  # nothing but the fence is between the two
    loops = [old]
    try:
        _until(lambda: len(committed(run_dir)) >= 2, old)
        if paused:
            old.signal(signal.SIGSTOP)
        new = Loop(config, run_dir, plan=plans[1], locked=False)
        loops.append(new)
        if paused:
            _until(lambda: (read_json(run_dir / ATTEMPT) or {}).get("pid") == new.processes[0].pid, new)
            at = time.time()
            old.signal(signal.SIGCONT)
        else:
            at = time.time()
        ended = old.wait()
        outcome.detected = max(outcome.detected or 0.0, ended.at - at)
        require(ended.codes == (1,) and "has taken over" in ended.said, f"the old group was not fenced out: {ended}")
        require(f"process {new.processes[0].pid} on" in ended.said, f"it does not name its successor: {ended.said}")
        succeeded = new.wait()
    finally:
        for loop in loops:
            loop.close()
    require(succeeded.done, f"the new group failed: {succeeded.said}")
    bad = [found.said() for _, path in committed(run_dir) if (found := examine(path)).condition != "verified"]
    bad += [str(path) for path in checkpoints_folder(run_dir).glob(f"{TEMPORARY}*")]
    require(not bad, f"the old group has left or damaged: {bad}")
    aside = {path.parent.name: path.read_text() for path in checkpoints_folder(run_dir).glob(f"{QUARANTINE}/*/{NOTE}")}
    # One that the old group had begun to rename when it was fenced out is whole: the successor's takes its place.
    require(not {*aside.values()} - {f"{REPLACED}\n"}, f"checkpoints were put into quarantine: {aside}")
    judge_trace(outcome, run_dir, ground.undisturbed())


def _until(holds: Callable[[], bool], loop: Loop, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if loop.ended or time.monotonic() > deadline:
            raise BrokenError(f"the run did not come so far: {loop.wait(1)}")
        time.sleep(0.02)


DRILL = Drill(
    fault="a worker group that was given up lives on",
    promise="It is fenced out at its next write and names its successor, whose run is none the worse: same trace, no "
    "checkpoint damaged.",
    run=run,
)
