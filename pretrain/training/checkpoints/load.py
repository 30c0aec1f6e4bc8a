"""Reading a checkpoint: where a run continues, its engine and random state, or its weights alone.

Same world size: bit for bit. Another one: through conversion (`convert`). Only what has been verified is read.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cardialign.data_shards.files import FileFacts, differences, facts_below, read_bytes
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.layout import write_error
from cardialign.pretrain.run.restart import move_aside
from cardialign.pretrain.run.tensors import load_state, load_tensors, open_tensors
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.condition import listed_now, verify
from cardialign.pretrain.training.checkpoints.convert import convert_world_size, separate_groups
from cardialign.pretrain.training.checkpoints.files import ENGINE, WEIGHTS, CheckpointError, rng_file
from cardialign.pretrain.training.checkpoints.judge import Facts, Resume, Verdict, judge
from cardialign.pretrain.training.checkpoints.pickles import check_pickles
from cardialign.pretrain.training.checkpoints.state import TrainerState, check_bank
from cardialign.pretrain.training.collectives import all_or_none, first_problem, on_rank_zero
from cardialign.pretrain.training.engine import Workers
from cardialign.pretrain.training.schedule import Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """Where to continue: a verified checkpoint, its state, and the plan of the steps to come.

    `engine_folder` is what DeepSpeed is to read: links to the checkpoint's listed files, or when the world size changed
    (`universal`) a converted copy, whose files are held to `converted`.
    """

    path: Path
    state: TrainerState
    plan: Plan
    engine_folder: Path
    converted: dict[str, FileFacts] | None = None

    @property
    def universal(self) -> bool:
        return self.converted is not None


def find_resume_point(
    run_dir: Path, config: RunConfig, facts: Facts, workers: Workers, resume: Resume = "same"
) -> ResumePoint | None:
    """Newest verified checkpoint that this run continues, agreed over ranks; None for a fresh start.

    What is found is judged first (`judge`); only then damaged checkpoints are put into quarantine, and a run that gives
    way is moved aside. Raises UserError when the start is refused or the run directory cannot be written.
    """

    point, mark = on_rank_zero(partial(take_over, run_dir, config, facts, workers, resume))
    all_or_none(partial(fence.hold, run_dir, mark))
    return point


def take_over(
    run_dir: Path, config: RunConfig, facts: Facts, workers: Workers, resume: Resume = "same"
) -> tuple[ResumePoint | None, fence.Mark]:
    """`find_resume_point` for one process, and the mark under which the run is this start's from here on."""
    seen = listed_now(run_dir)
    verdict = _judged(run_dir, config, facts, resume)
    try:
        mark = fence.of_this_process(run_dir)
        if listed_now(run_dir) != seen:  # whoever held it until now has committed another one
            verdict = _judged(run_dir, config, facts, resume)
        return _prepared(verdict, run_dir, config, workers), mark
    except OSError as error:
        raise write_error(run_dir, error) from None


def _judged(run_dir: Path, config: RunConfig, facts: Facts, resume: Resume) -> Verdict:
    verdict = judge(run_dir, config, facts, resume)
    if verdict.found is not None and verdict.state is not None:
        check_bank(verdict.state, facts.bank_digest, verdict.found.path)
        check_pickles(verdict.found.path, verdict.found.names)
    return verdict


def _prepared(verdict: Verdict, run_dir: Path, config: RunConfig, workers: Workers) -> ResumePoint | None:
    """Carry out a verdict: the first changes of a start."""
    if verdict.start_over:
        log.warning("run_dir=%s action=start-over moved_to=%s", run_dir, move_aside(run_dir))
    files.sweep(run_dir)
    for damaged in verdict.damaged:
        files.quarantine(damaged.path, "; ".join(damaged.reasons[:3]))
    if verdict.found is None or verdict.state is None:
        return None
    path, state, zero_stage = verdict.found.path, verdict.state, config.training.zero_stage
    folder, converted = files.linked(path, verdict.found.names), None
    # Without ZeRO the optimizer state is whole in one file and loads at any world size.
    if state.world_size != workers.world_size and zero_stage > 0:
        source = folder
        folder = convert_world_size(path, run_dir, zero_stage, state, workers.world_size, source)
        converted = facts_below(folder)
    log.info(
        "resume=%s step=%d world_size=%d->%d converted=%s",
        path, state.step, state.world_size, workers.world_size, converted is not None,
    )  # fmt: skip
    return ResumePoint(path, state, verdict.plan, folder, converted)


def load_checkpoint(engine: Any, point: ResumePoint, workers: Workers) -> None:
    """Verified checkpoint -> engine and random state; the links or the converted copy are removed.

    At another world size than the checkpoint's the random state starts from (seed, rank, step) instead.
    Raises CheckpointError when DeepSpeed finds nothing, or a converted copy is not as it was written.
    """
    decay = [group["weight_decay"] for group in engine.optimizer.param_groups]
    problem = first_problem(_not_as_converted(point))
    if problem is not None:
        raise CheckpointError(
            f"the copy of checkpoint {point.path} for {workers.world_size} workers changed after it was written: "
            f"{problem}",
            f"run the same command again, or continue with {point.state.world_size} workers",
        )
    loaded, _ = engine.load_checkpoint(str(point.engine_folder), tag=ENGINE, load_lr_scheduler_states=False)
    if loaded is None:
        raise CheckpointError(
            f"checkpoint {point.path}: DeepSpeed found nothing to load under {point.engine_folder}",
            "use another checkpoint",
        )
    if point.universal:
        separate_groups(engine, decay)
        _load_buffers(engine, point.path / WEIGHTS)
    _load_random(point, workers)
    torch.distributed.barrier()  # others may still be reading
    if workers.rank == 0:
        for folder in {point.engine_folder, files.links_of(point.path)} - {point.path}:
            files.remove(folder)


def _not_as_converted(point: ResumePoint) -> str | None:
    if point.converted is None:
        return None
    found = differences(point.engine_folder, point.converted)
    return f"{found[0].name}: {found[0].kind}" if found else None


def _load_random(point: ResumePoint, workers: Workers) -> None:
    if point.state.world_size != workers.world_size:
        seed_random(point.state.config["seed"], workers.rank, point.state.step)
        return
    state = load_state(rng_file(point.path, workers.rank))
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and workers.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], workers.device)


def _load_buffers(engine: Any, weights: Path) -> None:
    """DeepSpeed 0.19 does not convert buffers (teachers, queues, codebooks).

    They come from the checkpoint's verified weights.
    """
    buffers = dict(engine.module.named_buffers())
    with open_tensors(weights) as stored, torch.no_grad():
        for name in engine.module.state_dict().keys() & buffers.keys():
            buffers[name].copy_(stored.get_tensor(name))


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The model's weights in a committed checkpoint, verified first; needs no DeepSpeed and no process group.

    The bytes that are parsed are those whose digest was compared: a file that changes in between is not read.
    Raises CheckpointError when any file of the checkpoint is not as it was written, or its weights are none.
    """
    verify(path)
    listed = files.listed_files(files.read_manifest(path))
    if WEIGHTS not in listed:
        raise CheckpointError(f"checkpoint {path}: {files.MANIFEST} lists no {WEIGHTS}", "use another checkpoint")
    content = read_bytes(path / WEIGHTS)
    if hashlib.sha256(content).hexdigest() != listed[WEIGHTS].sha256:
        raise CheckpointError(f"checkpoint {path}: {WEIGHTS} changed while it was read", "use another checkpoint")
    try:
        return load_tensors(content)
    except ValueError as error:
        raise CheckpointError(
            f"checkpoint {path}: {WEIGHTS} cannot be read ({error})", "use another checkpoint"
        ) from None


def seed_random(seed: int, rank: int, step: int) -> None:
    """Random numbers for dropout: different on every rank, the same on every start."""
    digest = hashlib.blake2b(f"{seed}/{rank}/{step}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
