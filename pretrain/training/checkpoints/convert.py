"""A checkpoint at another world size: DeepSpeed's converter for ZeRO's shards, and what its loader then gets wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from cardialign.pretrain.run import fence
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.files import ENGINE, CheckpointError
from cardialign.pretrain.training.checkpoints.state import TrainerState

UNIVERSAL = "universal"


def convert_world_size(path: Path, run_dir: Path, zero_stage: int, state: TrainerState, world_size: int) -> Path:
    """Verified ZeRO checkpoint -> DeepSpeed universal checkpoint beside it; returns the folder to load from.

    Called by one process. Raises CheckpointError when the converter fails.

    Runs in a process of its own: DeepSpeed's converter prints, forks and reads its arguments from the command line.
    """
    target = files.checkpoints_folder(run_dir) / f"{files.TEMPORARY}{fence.label(run_dir)}{UNIVERSAL}-{path.name}"
    shutil.rmtree(target, ignore_errors=True)
    words = [
        sys.executable,
        "-m",
        "deepspeed.checkpoint.ds_to_universal",
        "--num_extract_workers",
        "1",
        "--num_merge_workers",
        "1",
    ]
    words += ["--input_folder", str(path / ENGINE), "--output_folder", str(target / ENGINE)]
    if zero_stage < 3:
        words.append("--inject_missing_state")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(
            f"checkpoint {path} was written by {state.world_size} workers "
            f"and could not be converted for {world_size}: {last}",
            f"continue with {state.world_size} workers, or free space under {target.parent}",
        )
    return target


def separate_groups(engine: Any, decay: list[float]) -> None:
    """Undo what DeepSpeed 0.19 does to the parameter groups when it loads a universal ZeRO-3 checkpoint.

    It loads as if there were one group: all of them get the first one's weight decay and share one step counter, which
    then counts twice per step. decay: the weight decay of each group as it was before.
    """
    for group, value in zip(engine.optimizer.param_groups, decay, strict=True):
        group["weight_decay"] = value
    for state in engine.basic_optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
