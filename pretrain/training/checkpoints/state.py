"""What a checkpoint holds, and how a run continues from it: same world size bit for bit, another world size through conversion.

engine/                DeepSpeed's files: weights, optimizer state, one shard per rank under ZeRO
rng/rank-00000.pt      random number state of each rank
trainer_state.json     step, digest of consumed sample ids, configuration, fingerprints
model.safetensors      the whole model's weights in float32, for those who want the model and not the run: no pickle
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.pretrain.config import RunConfig, parse_config
from cardialign.pretrain.config.load import upgrade
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.files import CheckpointError
from cardialign.pretrain.training.collectives import first_problem, on_rank_zero
from cardialign.pretrain.training.engine import Workers, full_weights

log = logging.getLogger(__name__)

TAG = "engine"
STATE = "trainer_state.json"
WEIGHTS = "model.safetensors"
UNIVERSAL = "universal"

# Keys that may differ between a checkpoint and the run that continues it: they change speed, duration or what is reported, not what a step computes.
HARMLESS = (
    "name",
    "data.shards",  # the content is held to its fingerprint, wherever the folder lies
    "data.threads",
    "data.prefetch",
    "data.max_bad_fraction",
    "data.slow_read_seconds",
    "training.micro_batch",
    "training.steps",
    "training.epochs",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "collapse.",
)
_MIXTURE_SHARDS = re.compile(r"data\.mixture\.\d+\.shards")  # as data.shards


@dataclass(frozen=True)
class TrainerState:
    """Everything but tensors: `step` optimizer steps are done, batches 0..step-1 are consumed, `digest` chains their sample ids."""

    step: int
    digest: str
    config: dict[str, Any]
    selection_fingerprint: str
    world_size: int
    order_version: int
    loss: float | None = None

    @staticmethod
    def read(path: Path) -> TrainerState:
        return TrainerState(**json.loads((path / STATE).read_text()))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(number): each for number, each in enumerate(value)}
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration with the keys that it lacks, because they were added later, at their defaults."""
    try:
        return json.loads(json.dumps(parse_config(saved).resolved()))
    except UsageError:  # it holds what this release does not know: compared as it stands, and refused
        return upgrade(saved)


def changed_keys(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (in the checkpoint, now) for every value that differs. A key that the checkpoint lacks counts as its default."""
    a, b = _flat(_with_defaults(saved)), _flat(current)
    return {key: (a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}


def check_continues(
    state: TrainerState, config: RunConfig, selection_fingerprint: str, order_version: int, path: Path
) -> None:
    """Raises UserError that names every change which would make the rest of the run another run; harmless ones are logged."""
    current = json.loads(json.dumps(config.resolved()))
    changed = changed_keys(state.config, current)
    harmless = (*HARMLESS, *(f"method.{key}" for key in config.method.harmless))
    harmful = {
        key: pair for key, pair in changed.items() if not (key.startswith(harmless) or _MIXTURE_SHARDS.fullmatch(key))
    }
    for key, (old, new) in changed.items():
        if key not in harmful:
            log.info("resume=%s action=accept key=%s was=%s now=%s", path, key, old, new)
    reasons = [f"{key} was {old!r}, now {new!r}" for key, (old, new) in harmful.items()]
    if state.selection_fingerprint != selection_fingerprint:
        reasons.append(
            f"the selected records differ (fingerprint {state.selection_fingerprint[:12]} was, {selection_fingerprint[:12]} now)"
        )
    if state.order_version != order_version:
        reasons.append(f"the data order is version {order_version}, the checkpoint's is {state.order_version}")
    if reasons:
        raise UserError(
            f"checkpoint {path} belongs to another run: " + "; ".join(reasons),
            "set these back to continue it, or give a new run directory to start afresh",
        )


@dataclass(frozen=True)
class ResumePoint:
    """Where to continue: a verified checkpoint, its state, and the folder that DeepSpeed is to read (converted when the world size changed)."""

    path: Path
    state: TrainerState
    engine_folder: Path
    universal: bool


def find_resume_point(
    run_dir: Path, config: RunConfig, selection_fingerprint: str, order_version: int, workers: Workers
) -> ResumePoint | None:
    """Newest verified checkpoint that this run continues, agreed over ranks; None for a fresh start. Raises UserError (`check_continues`)."""

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


def convert_world_size(path: Path, run_dir: Path, zero_stage: int, state: TrainerState, world_size: int) -> Path:
    """Verified ZeRO checkpoint -> DeepSpeed universal checkpoint beside it (one process); returns the folder to load from.

    Runs in a process of its own: DeepSpeed's converter prints, forks and reads its arguments from the command line.
    """
    target = files.checkpoints_folder(run_dir) / f"{files.TEMPORARY}{UNIVERSAL}-{path.name}"
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
    words += ["--input_folder", str(path / TAG), "--output_folder", str(target / TAG)]
    if zero_stage < 3:
        words.append("--inject_missing_state")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(
            f"checkpoint {path} was written by {state.world_size} workers and could not be converted for {world_size}: {last}",
            f"continue with {state.world_size} workers, or free space under {target.parent}",
        )
    return target


class _WriteFailures:
    """DeepSpeed's torch writer, but a failed write is remembered instead of raised: the other ranks are in a barrier and would wait for ever."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.problem: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)

    def save(self, state_dict: Any, path: str) -> None:
        try:
            self.writer.save(state_dict, path)
        except (OSError, RuntimeError) as error:
            self.problem = self.problem or f"{Path(path).name}: {error}"


def save_checkpoint(engine: Any, run_dir: Path, state: TrainerState, workers: Workers, *, keep: int) -> Path:
    """Write and commit one checkpoint, called by all ranks at the same step; returns its path.

    Raises CheckpointError on every rank when any rank could not write; what was written is removed and earlier checkpoints stay.
    """
    folder = files.temporary_path(run_dir, state.step)
    on_rank_zero(lambda: _open(folder))
    failures = _WriteFailures(engine.checkpoint_engine)
    engine.checkpoint_engine = failures
    engine._copy_recovery_script = lambda save_path: (
        None
    )  # a script of DeepSpeed's, useless here, whose copy can fail on one rank alone
    try:
        engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
    finally:
        engine.checkpoint_engine = failures.writer
    weights = full_weights(engine)
    problem = failures.problem
    try:
        if problem is None:
            _save_rng(folder, workers)
            if workers.rank == 0:
                save_file({name: tensor.contiguous() for name, tensor in weights.items()}, str(folder / WEIGHTS))
                (folder / STATE).write_text(json.dumps(asdict(state), indent=1))
    except (OSError, RuntimeError, SafetensorError) as error:
        problem = str(error)
    _raise_together(problem, run_dir, folder)
    entries: dict[str, dict[str, Any]] = {}
    try:
        entries = files.seal(folder, files.files_below(folder)[workers.rank :: workers.world_size])
    except OSError as error:
        problem = str(error)
    _raise_together(problem, run_dir, folder)
    shares: list[Any] = [None] * workers.world_size
    torch.distributed.all_gather_object(shares, entries)

    def finish() -> Path:
        summary = {
            "world_size": state.world_size,
            "digest": state.digest,
            "zero_stage": state.config["training"]["zero_stage"],
        }
        path = files.commit(
            run_dir, state.step, {name: entry for share in shares for name, entry in share.items()}, summary
        )
        log.info("checkpoint=%s action=commit step=%d", path, state.step)
        files.prune(run_dir, keep)
        return path

    try:
        return on_rank_zero(finish)
    except OSError as error:
        raise _write_error(str(error), run_dir) from None


def _open(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / TAG).mkdir(parents=True)
        (folder / "rng").mkdir()
    except OSError as error:
        raise _write_error(str(error), folder.parent) from None


def _write_error(problem: str, where: Path) -> CheckpointError:
    free = files.free_bytes(where)
    return CheckpointError(
        f"checkpoint not written under {where}: {problem} ({free:,} bytes free)",
        "free space, or use a run directory that every worker can write to and shares; then run again: it continues from the last committed checkpoint",
    )


def _raise_together(problem: str | None, run_dir: Path, folder: Path) -> None:
    anywhere = first_problem(problem)
    if anywhere is None:
        return
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    raise _write_error(anywhere, run_dir)


def _rng_file(folder: Path, rank: int) -> Path:
    return folder / "rng" / f"rank-{rank:05d}.pt"


def _save_rng(folder: Path, workers: Workers) -> None:
    state = {"cpu": torch.get_rng_state()}
    if workers.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(workers.device)
    torch.save(state, _rng_file(folder, workers.rank))


def load_checkpoint(engine: Any, point: ResumePoint, workers: Workers) -> None:
    """Verified checkpoint -> engine and random state; a converted copy is removed. At another world size the random state starts from (seed, rank, step) instead."""
    decay = [group["weight_decay"] for group in engine.optimizer.param_groups]
    loaded, _ = engine.load_checkpoint(str(point.engine_folder), tag=TAG, load_lr_scheduler_states=False)
    if loaded is None:
        raise CheckpointError(
            f"checkpoint {point.path}: DeepSpeed found nothing to load under {point.engine_folder}",
            "use another checkpoint",
        )
    if point.universal:
        _separate_groups(engine, decay)
        _load_buffers(engine, point.path / WEIGHTS)
        on_rank_zero(lambda: shutil.rmtree(point.engine_folder, ignore_errors=True))
    if point.state.world_size != workers.world_size:
        seed_random(point.state.config["seed"], workers.rank, point.state.step)
        return
    state = torch.load(_rng_file(point.path, workers.rank), weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and workers.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], workers.device)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The model's weights in a committed checkpoint, verified first; needs no DeepSpeed and no process group. Raises CheckpointError."""
    files.verify(path)
    return load_file(str(path / WEIGHTS))


def _load_buffers(engine: Any, weights: Path) -> None:
    """DeepSpeed 0.19 does not convert buffers (teachers, queues, codebooks): they come from the checkpoint's verified weights."""
    buffers = dict(engine.module.named_buffers())
    with safe_open(weights, framework="pt") as stored, torch.no_grad():
        for name in engine.module.state_dict().keys() & buffers.keys():
            buffers[name].copy_(stored.get_tensor(name))


def _separate_groups(engine: Any, decay: list[float]) -> None:
    """DeepSpeed 0.19 loads a universal ZeRO-3 checkpoint as if there were one parameter group: it hands the first one's weight decay and one
    shared step counter, which then counts twice per step, to all of them."""
    for group, value in zip(engine.optimizer.param_groups, decay, strict=True):
        group["weight_decay"] = value
    for state in engine.basic_optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


def seed_random(seed: int, rank: int, step: int) -> None:
    """Random numbers for dropout: different on every rank, the same on every start."""
    digest = hashlib.blake2b(f"{seed}/{rank}/{step}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
