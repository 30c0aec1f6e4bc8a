"""Reading a checkpoint: where a run continues, its engine and random state, or its weights alone.

Same world size: bit for bit. Another one: through conversion (`convert`). Only what has been verified is read.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.convert import convert_world_size, separate_groups
from cardialign.pretrain.training.checkpoints.files import ENGINE, WEIGHTS, CheckpointError, rng_file
from cardialign.pretrain.training.checkpoints.state import TrainerState, check_continues
from cardialign.pretrain.training.collectives import on_rank_zero
from cardialign.pretrain.training.engine import Workers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """Where to continue: a verified checkpoint and its state.

    `engine_folder` is what DeepSpeed is to read: `path`, or when the world size changed (`universal`) a converted copy.
    """

    path: Path
    state: TrainerState
    engine_folder: Path
    universal: bool


def find_resume_point(
    run_dir: Path, config: RunConfig, selection_fingerprint: str, order_version: int, workers: Workers
) -> ResumePoint | None:
    """Newest verified checkpoint that this run continues, agreed over ranks; None for a fresh start.

    Raises UserError when the run is another one than the checkpoint's (`check_continues`).
    """

    def find() -> tuple[Path, TrainerState, Path, bool] | None:
        files.sweep(run_dir)
        path = files.newest_verified(run_dir)
        if path is None:
            return None
        state = TrainerState.read(path)
        check_continues(state, config, selection_fingerprint, order_version, path)
        # Without ZeRO the optimizer state is whole in one file and loads at any world size.
        convert = state.world_size != workers.world_size and config.training.zero_stage > 0
        folder = (
            convert_world_size(path, run_dir, config.training.zero_stage, state, workers.world_size)
            if convert
            else path
        )
        log.info(
            "resume=%s step=%d world_size=%d->%d converted=%s",
            path,
            state.step,
            state.world_size,
            workers.world_size,
            convert,
        )
        return path, state, folder, convert

    found = on_rank_zero(find)
    return None if found is None else ResumePoint(*found)


def load_checkpoint(engine: Any, point: ResumePoint, workers: Workers) -> None:
    """Verified checkpoint -> engine and random state; a converted copy is removed.

    At another world size than the checkpoint's the random state starts from (seed, rank, step) instead.
    """
    decay = [group["weight_decay"] for group in engine.optimizer.param_groups]
    loaded, _ = engine.load_checkpoint(str(point.engine_folder), tag=ENGINE, load_lr_scheduler_states=False)
    if loaded is None:
        raise CheckpointError(
            f"checkpoint {point.path}: DeepSpeed found nothing to load under {point.engine_folder}",
            "use another checkpoint",
        )
    if point.universal:
        separate_groups(engine, decay)
        _load_buffers(engine, point.path / WEIGHTS)
        on_rank_zero(lambda: shutil.rmtree(point.engine_folder, ignore_errors=True))
    if point.state.world_size != workers.world_size:
        seed_random(point.state.config["seed"], workers.rank, point.state.step)
        return
    state = torch.load(rng_file(point.path, workers.rank), weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and workers.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], workers.device)


def _load_buffers(engine: Any, weights: Path) -> None:
    """DeepSpeed 0.19 does not convert buffers (teachers, queues, codebooks).

    They come from the checkpoint's verified weights.
    """
    buffers = dict(engine.module.named_buffers())
    with safe_open(weights, framework="pt") as stored, torch.no_grad():
        for name in engine.module.state_dict().keys() & buffers.keys():
            buffers[name].copy_(stored.get_tensor(name))


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The model's weights in a committed checkpoint, verified first; needs no DeepSpeed and no process group.

    Raises CheckpointError when any file of the checkpoint is not as it was written.
    """
    files.verify(path)
    return load_file(str(path / WEIGHTS))


def seed_random(seed: int, rank: int, step: int) -> None:
    """Random numbers for dropout: different on every rank, the same on every start."""
    digest = hashlib.blake2b(f"{seed}/{rank}/{step}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
