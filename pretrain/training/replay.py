"""One step of a run made again, alone and beside the run: from the newest sound checkpoint before it, with its batches.

The run directory is read, never written: what the replay needs lies in a scratch folder of its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.files import read_json
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.run.files import BAD_STEPS, QUARANTINE
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.alarms import CollapseError
from cardialign.pretrain.training.checkpoints.condition import Finding, examine
from cardialign.pretrain.training.checkpoints.files import CheckpointError, committed, committed_path
from cardialign.pretrain.training.checkpoints.judge import refuse_what_others_wrote
from cardialign.pretrain.training.checkpoints.state import TrainerState, stored_config
from cardialign.pretrain.training.loop import train
from cardialign.pretrain.training.numbers.bad_steps import bad_step_file

NEVER = 2**31 - 1


class _OverError(Exception):
    """The step has been made."""


def replay(run_dir: Path, step: int) -> dict[str, Any]:
    """Make step `step` (1-based) of a run again, in this process; what `bad_steps/STEP.json` holds, and beside it

    checkpoint    step of the checkpoint that it began from, None for the weights of the start.
    first         the first module, input or gradient that is not finite; None where all are.
    written_down  what the run itself wrote of the step: loss, gradient_norm, world_size; None where nothing.
    same_batch    whether the records are those of the run, by digest; None where the run wrote nothing.

    One process takes the place of all ranks: sums are taken in another order, so that figures agree to rounding.
    Raises UsageError for a folder that holds no run, CheckpointError where nothing before the step can be gone on from.
    """
    config = stored_config(run_dir)
    if config is None:
        raise UsageError(f"{run_dir} holds no run", "give the --run-dir of `cardialign pretrain`")
    made = max((int(line["step"]) for line in read_trace(run_dir)), default=0)
    if step > made + 1:
        raise UsageError(f"the run in {run_dir} has made {made} steps, not {step}", "give one of them, or the next")
    found = _newest_before(run_dir, step)
    scratch = Path(tempfile.mkdtemp(prefix="cardialign-replay-"))
    try:
        world = _lay_out(run_dir, scratch, found)
        alone = _alone(config, world)

        def on_step(done: int) -> None:
            if done >= step:
                raise _OverError

        problem = ""
        try:
            with suppress(_OverError):
                train(alone, scratch, NullObserver(), on_step=on_step, inspect=step)
        except CollapseError as error:
            problem = f": {error.problem}"
        note = read_json(bad_step_file(scratch, step))
        if note is None:
            raise UsageError(f"the run ends before step {step}{problem}", "give a step that it has made")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    before = read_json(bad_step_file(run_dir, step))
    told = None if before is None else {key: before.get(key) for key in ("loss", "gradient_norm", "world_size")}
    same = None if before is None else before.get("digest") == note["digest"]
    return {**note, "checkpoint": None if found is None else found.step, "written_down": told, "same_batch": same}


def _newest_before(run_dir: Path, step: int) -> Finding | None:
    there = [(at, path) for at, path in committed(run_dir) if at < step]
    for _, path in reversed(there):
        finding = examine(path)
        if finding.condition == "verified":
            refuse_what_others_wrote(run_dir, finding)
            return finding
    if there:
        raise CheckpointError(
            f"no checkpoint of {run_dir} before step {step} is sound", "see `cardialign checkpoints verify`"
        )
    return None


def _lay_out(run_dir: Path, scratch: Path, found: Finding | None) -> int:
    """Copies, as links where the disk allows, of what decides the steps; returns the number of workers of the run."""
    if (run_dir / QUARANTINE).is_file():
        shutil.copy(run_dir / QUARANTINE, scratch / QUARANTINE)
    if (run_dir / BAD_STEPS).is_dir():
        shutil.copytree(run_dir / BAD_STEPS, scratch / BAD_STEPS)
    if found is None:
        return 1
    target = committed_path(scratch, found.step)
    shutil.copytree(found.path, target, copy_function=_link)
    return TrainerState.read(found.path).world_size


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _alone(config: RunConfig, world: int) -> RunConfig:
    """The configuration for one process: rows are encoded as many at a time as a rank did, and nothing is saved."""
    training = config.training
    changes: dict[str, Any] = {"checkpoint_every": NEVER, "log_every": NEVER, "checkpoint_writing": "step"}
    if training.micro_batch is None and not config.depends_on_micro_batch:
        changes["micro_batch"] = -(-training.global_batch // world)
    return config.model_copy(update={"training": training.model_copy(update=changes), "evaluation": None})
