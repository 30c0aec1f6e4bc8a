"""Writing a checkpoint from all ranks, while the step waits: it is committed on all of them or on none.

The plain way, and the reference of `background`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from cardialign.data_shards.files import sync, usual_rights
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import METRICS
from cardialign.pretrain.run.layout import free_bytes, remedy_of
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.files import ENGINE, WEIGHTS, CheckpointError, rng_file
from cardialign.pretrain.training.checkpoints.retention import prune
from cardialign.pretrain.training.checkpoints.snapshot import random_state, replaced_writer
from cardialign.pretrain.training.checkpoints.state import TrainerState
from cardialign.pretrain.training.collectives import first_problem, on_rank_zero
from cardialign.pretrain.training.engine import Workers, full_weights

log = logging.getLogger(__name__)


class _WriteFailures:
    """DeepSpeed's torch writer, but a failed write is remembered instead of raised.

    The other ranks are in a barrier and would wait for ever.
    """

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


def save_checkpoint(
    engine: Any, run_dir: Path, state: TrainerState, workers: Workers, *, keep: int, problem: str | None = None
) -> Path:
    """Write and commit one checkpoint, called by all ranks at the same step; returns its path.

    problem: what this rank could not write of what belongs to the step, such as its trace; then nothing is committed.
    Raises CheckpointError on every rank when any rank could not write: what was written is removed, earlier checkpoints
    stay.
    """
    folder = files.temporary_path(run_dir, state.step)
    raise_together(problem, run_dir, folder)
    on_rank_zero(lambda: open_folder(run_dir, folder))
    problem = _save_engine(engine, folder)
    weights = full_weights(engine)
    try:
        if problem is None:
            torch.save(random_state(workers), rng_file(folder, workers.rank))
            if workers.rank == 0:
                save_file({name: tensor.contiguous() for name, tensor in weights.items()}, str(folder / WEIGHTS))
                usual_rights(folder / WEIGHTS)
                state.write(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        problem = str(error)
    raise_together(problem, run_dir, folder)
    entries: dict[str, dict[str, Any]] = {}
    try:
        entries = files.seal(folder, files.files_below(folder)[workers.rank :: workers.world_size])
    except OSError as error:
        problem = str(error)
    raise_together(problem, run_dir, folder)
    shares: list[Any] = [None] * workers.world_size
    torch.distributed.all_gather_object(shares, entries)

    together = {name: entry for share in shares for name, entry in share.items()}
    try:
        return on_rank_zero(lambda: commit_and_prune(run_dir, state, together, keep))
    except OSError as error:
        if workers.rank == 0:
            files.remove(folder)
        raise not_written(str(error), run_dir) from None


def commit_and_prune(
    run_dir: Path, state: TrainerState, entries: dict[str, dict[str, Any]], keep: int, folder: Path | None = None
) -> Path:
    """The last act of a checkpoint whose files are all there, by one process. Raises OSError where it fails.

    folder: as `temporary` of `files.commit`.
    """
    summary = {
        "world_size": state.world_size,
        "digest": state.digest,
        "zero_stage": state.config["training"]["zero_stage"],
    }
    if (run_dir / METRICS).exists():
        sync(run_dir / METRICS)  # no checkpoint without the trace up to it
    path = files.commit(run_dir, state.step, entries, summary, folder)
    log.info("checkpoint=%s action=commit step=%d", path, state.step)
    try:
        prune(run_dir, keep, written=path)
    except (OSError, CheckpointError) as error:  # it is committed: older ones may wait for the next prune
        log.warning("checkpoint=%s action=keep-older error=%s", path, error)
    return path


def _save_engine(engine: Any, folder: Path) -> str | None:
    """DeepSpeed's files; returns what went wrong on this rank."""
    failures = _WriteFailures(engine.checkpoint_engine)
    with replaced_writer(engine, failures):
        engine.save_checkpoint(str(folder), tag=ENGINE, save_latest=False)
    return failures.problem


def open_folder(run_dir: Path, folder: Path) -> None:
    fence.check(run_dir)
    try:
        if folder.is_symlink() or folder.is_file():
            files.quarantine(folder, "no folder of ours: it stood where a checkpoint is written")
        files.remove(folder)
        (folder / ENGINE).mkdir(parents=True)
        (folder / "rng").mkdir()
    except OSError as error:
        raise not_written(str(error), folder.parent) from None


def not_written(problem: str, where: Path) -> CheckpointError:
    return CheckpointError(
        f"checkpoint not written under {where}: {problem} ({free_bytes(where):,} bytes free)", remedy_of(problem)
    )


def raise_together(problem: str | None, run_dir: Path, folder: Path) -> None:
    anywhere = first_problem(problem)
    if anywhere is None:
        return
    if torch.distributed.get_rank() == 0:
        files.remove(folder)
    raise not_written(anywhere, run_dir)
