"""A checkpoint at another world size: DeepSpeed's converter for ZeRO's shards, and what its loader then gets wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from cardialign.pretrain.run import fence
from cardialign.pretrain.run.tensors import load_state, open_tensors
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.files import ENGINE, WEIGHTS, CheckpointError
from cardialign.pretrain.training.checkpoints.state import TrainerState

UNIVERSAL = "universal"


def convert_world_size(
    path: Path, run_dir: Path, zero_stage: int, state: TrainerState, world_size: int, source: Path | None = None
) -> Path:
    """Verified ZeRO checkpoint -> DeepSpeed universal checkpoint beside it; returns the folder to load from.

    source: where the converter reads (`files.linked`), when that is not `path` itself. Called by one process. Raises
    CheckpointError when the converter fails, or what it wrote is not the model of the checkpoint.

    Runs in a process of its own: DeepSpeed's converter prints, forks and reads its arguments from the command line.
    """
    target = files.checkpoints_folder(run_dir) / f"{files.TEMPORARY}{fence.label(run_dir)}{UNIVERSAL}-{path.name}"
    files.remove(target)
    words = [
        sys.executable,
        "-m",
        "deepspeed.checkpoint.ds_to_universal",
        "--num_extract_workers",
        "1",
        "--num_merge_workers",
        "1",
    ]
    words += ["--input_folder", str((source or path) / ENGINE), "--output_folder", str(target / ENGINE)]
    if zero_stage < 3:
        words.append("--inject_missing_state")
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - DeepSpeed's own tool
    problem = (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode != 0 else None
    problem = problem or _differs(target / ENGINE, path / WEIGHTS)
    if problem is not None:
        files.remove(target)
        raise CheckpointError(
            f"checkpoint {path} was written by {state.world_size} workers "
            f"and could not be converted for {world_size}: {problem}",
            f"continue with {state.world_size} workers, or free space under {target.parent}",
        )
    return target


def _differs(engine: Path, weights: Path) -> str | None:
    """How the converted copy differs from the verified weights of the checkpoint; None when it is whole.

    Every trained parameter has its weight, equal bit for bit, and two finite averages of Adam of its size. A buffer,
    for which the converter writes no averages at all, has its values.
    """
    if not (engine / "zero").is_dir():
        return "the copy is empty"
    with open_tensors(weights) as stored:
        names = set(stored.keys())
        folders = sorted(path for path in (engine / "zero").iterdir() if path.is_dir())
        for folder in folders:
            if folder.name not in names:
                return f"{folder.name} is no tensor of the checkpoint"
            expected = stored.get_tensor(folder.name).float().flatten()
            averages = [part for part in ("exp_avg", "exp_avg_sq") if (folder / f"{part}.pt").exists()]
            for part in ("fp32", "exp_avg", "exp_avg_sq") if averages else ("fp32",):
                tensor = _tensor(folder / f"{part}.pt")
                if tensor is None or tensor.numel() != expected.numel() or not torch.isfinite(tensor).all():
                    return f"{folder.name}/{part}.pt is not whole"
                if part == "fp32" and not torch.equal(tensor.float().flatten(), expected):
                    return f"{folder.name} differs from the weights of the checkpoint"
    return None if folders else "the copy is empty"


def _tensor(path: Path) -> torch.Tensor | None:
    try:
        held = load_state(path)
    except (OSError, ValueError):
        return None
    held = held.get("param") if isinstance(held, dict) else held
    return held if torch.is_tensor(held) else None


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
