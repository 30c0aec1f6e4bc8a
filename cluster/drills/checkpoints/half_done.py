"""A run that was killed behind a checkpoint: what drills of checkpoints damage a copy of."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from cardialign.cluster.drills.ground import EVERY, Ground
from cardialign.cluster.drills.outcome import BrokenError, Outcome
from cardialign.cluster.drills.traces import judge_trace
from cardialign.cluster.runs.planned import Fault, plan_of, stepped, write_plan

AT = 4 * EVERY
"""Its newest checkpoint; two earlier ones are there, and the next one prunes."""
UNTIL = AT + 2 * EVERY + 1
"""Where a run that went on is looked at."""


def half_done(ground: Ground) -> Path:
    """A run directory whose loop was killed after step `AT`; made once."""
    path = ground.runs / "half-done"
    if not path.is_dir():
        write_plan(plan_of(path), (Fault("kill", AT),))
        ended = ground.loop(path, plan=plan_of(path))
        if ended.codes != (-9,):
            raise BrokenError(f"the run to be damaged ended with {ended.codes}: {ended.said}")
    return path


def copy_of(ground: Ground, name: str) -> Path:
    run_dir = ground.run_dir(name)
    shutil.copytree(half_done(ground), run_dir)
    return run_dir


def goes_on(ground: Ground, run_dir: Path, outcome: Outcome, faults: Sequence[Fault] = (), done: int = AT) -> int:
    """Start the run again until step `UNTIL`; the step at which it began.

    done: what was done before. Notes the worst of all tries: steps done twice, seconds to the first new one. Raises
    BrokenError unless the trace is the undisturbed one's so far.
    """
    at = time.time()
    plan = plan_of(run_dir)
    write_plan(plan, (*faults, Fault("kill", UNTIL)))
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
    kinds = (
        "manifest.json",
        "trainer_state.json",
        "model.safetensors",
        "rng/*",
        "engine/*model_states*",
        "engine/*optim*",
    )
    found = [sorted(checkpoint.glob(kind)) for kind in kinds]
    others = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    missing = [kind for kind, paths in zip(kinds, found, strict=True) if not paths]
    if missing:
        raise BrokenError(f"{checkpoint} holds no {', '.join(missing)}, but {[path.name for path in others]}")
    return [paths[-1] for paths in found]
