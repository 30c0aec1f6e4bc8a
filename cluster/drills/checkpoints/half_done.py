"""A run that was killed behind a checkpoint: what drills of checkpoints damage a copy of."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

from cardialign.cluster.drills.ground import EVERY, PACE, Ground
from cardialign.cluster.drills.loop import Loop
from cardialign.cluster.drills.outcome import BrokenError, Outcome
from cardialign.cluster.drills.traces import judge_trace
from cardialign.cluster.runs.planned import Fault, plan_of, stepped, write_plan
from cardialign.pretrain.training.checkpoints.files import ENGINE, MANIFEST, STATE, WEIGHTS, committed, committed_path

AT = 4 * EVERY
"""Its newest checkpoint; two earlier ones are there, and the next one prunes."""
UNTIL = AT + 2 * EVERY + 1
"""Where a run that went on is looked at."""


def half_done(ground: Ground) -> Path:
    """A run directory whose loop was killed once the checkpoint of step `AT` was committed; made once."""
    path = ground.runs / "half-done"
    if not path.is_dir():
        plan = plan_of(path)
        write_plan(plan, pace=2 * PACE)
        with Loop(ground.config(), path, plan=plan) as loop:
            while not committed_path(path, AT).is_dir() and not loop.ended:
                time.sleep(0.01)
            loop.signal(signal.SIGKILL)
            ended = loop.wait()
        newest = max((step for step, _ in committed(path)), default=0)
        if ended.codes != (-9,) or newest != AT:
            raise BrokenError(f"the run to be damaged ended with {ended.codes} behind step {newest}: {ended.said}")
    return path


def done_before(ground: Ground) -> int:
    """The last step that was done before the run was killed."""
    return max(step for _, step in stepped(plan_of(half_done(ground))))


def copy_of(ground: Ground, name: str) -> Path:
    run_dir = ground.run_dir(name)
    shutil.copytree(half_done(ground), run_dir)
    return run_dir


def goes_on(ground: Ground, run_dir: Path, outcome: Outcome, done: int | None = None) -> int:
    """Start the run again until step `UNTIL`; the step at which it began.

    done: the last step that was done before, if not that of the half-done run. Notes the worst of all tries: steps done
    twice, seconds to the first new one. Raises BrokenError unless the trace is the undisturbed one's so far.
    """
    done, at, plan = done or done_before(ground), time.time(), plan_of(run_dir)
    write_plan(plan, (Fault("kill", UNTIL),))
    ended = ground.loop(run_dir, plan=plan)
    if ended.codes != (-9,):
        raise BrokenError(f"the run did not go on ({ended.codes}): {ended.said}")
    judge_trace(outcome, run_dir, ground.undisturbed()[:UNTIL])
    since = [(when, step) for when, step in stepped(plan) if when > at]
    outcome.lost = max(outcome.lost or 0, sum(step <= done for _, step in since))
    outcome.back = max(outcome.back or 0.0, next(when for when, step in since if step > done) - at)
    return since[0][1]


def kinds_of_files(checkpoint: Path) -> list[Path]:
    """One file of each kind that a checkpoint holds."""
    kinds = (MANIFEST, STATE, WEIGHTS, "rng/*", f"{ENGINE}/*model_states*", f"{ENGINE}/*optim*")
    found = [sorted(checkpoint.glob(kind)) for kind in kinds]
    others = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    missing = [kind for kind, paths in zip(kinds, found, strict=True) if not paths]
    if missing:
        raise BrokenError(f"{checkpoint} holds no {', '.join(missing)}, but {[path.name for path in others]}")
    return [paths[-1] for paths in found]
