"""What a rank writes of a checkpoint, copied to host memory: all that the step pays for when it is written behind it.

`torch.save` puts a pickle and the bytes of each storage into an archive, record by record. Here it is given an archive
that copies the records instead, and `write_archive` puts the same records into a file later: what lies on disk is byte
for byte what `torch.save` would have written at that step.

Memory: one copy of the files of this rank, on the host, kept and filled again at the next checkpoint. To allocate it
anew would cost more than the copy. On CUDA it is pinned, and PyTorch's pool of pinned memory rounds blocks up to powers
of two. While `model.safetensors` is written its library holds those weights once more.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.serialization import config as serialization

from cardialign.data_shards.files import usual_rights
from cardialign.pretrain.training.checkpoints.files import ENGINE, STATE, WEIGHTS, rng_file
from cardialign.pretrain.training.checkpoints.state import TrainerState
from cardialign.pretrain.training.engine import Workers, full_weights

Records = list[tuple[str, Any, int]]
"""Name, content and bytes of each record of an archive."""


class HostBuffers:
    """Host memory that is lent out in the same order at every checkpoint, and filled anew."""

    def __init__(self, pinned: bool = False) -> None:
        self.pinned = pinned
        self._held: list[Tensor] = []
        self._lent = 0

    @property
    def bytes(self) -> int:
        return sum(held.shape[0] for held in self._held)

    def begin(self) -> None:
        """What was lent out is free again."""
        self._lent = 0

    def lend(self, size: int) -> Tensor:
        """(size,) bytes."""
        at = self._lent
        self._lent += 1
        if at < len(self._held) and self._held[at].shape[0] == size:
            return self._held[at]
        fresh = torch.empty(size, dtype=torch.uint8, pin_memory=self.pinned)
        self._held[at : at + 1] = [fresh]
        return fresh

    def copy(self, tensor: Tensor) -> Tensor:
        """The values of a tensor on any device, contiguous."""
        size = tensor.numel() * tensor.element_size()
        target = self.lend(size)[:size].view(tensor.dtype).view(tensor.shape)
        return target.copy_(tensor.detach(), non_blocking=self.pinned)


class _Archive:
    """Takes the records that `torch.save` writes, and keeps copies of the bytes of storages."""

    def __init__(self, buffers: HostBuffers) -> None:
        self.buffers = buffers
        self.records: Records = []

    def write_record(self, name: str, data: Any, size: int) -> None:
        # Of a storage on a device it is given a pinned copy already; nothing of ours that lives on the host is pinned.
        if isinstance(data, torch.UntypedStorage) and not (self.buffers.pinned and data.is_pinned()):
            held = self.buffers.lend(data.nbytes())
            held.untyped_storage().copy_(data)
            data = held.untyped_storage()
        self.records.append((name, data, size))


def records_of(values: Any, buffers: HostBuffers) -> Records:
    """The archive that `torch.save(values, FILE)` writes."""
    archive = _Archive(buffers)
    before = serialization.save.use_pinned_memory_for_d2h
    serialization.save.use_pinned_memory_for_d2h = buffers.pinned
    try:
        torch.serialization._save(values, archive, pickle, torch.serialization.DEFAULT_PROTOCOL, False)
    finally:
        serialization.save.use_pinned_memory_for_d2h = before
    return archive.records


def write_archive(records: Records, path: Path) -> None:
    """Raises OSError or RuntimeError as `torch.save` does."""
    with torch.serialization._open_zipfile_writer(str(path)) as archive:
        for name, data, size in records:
            archive.write_record(name, data, size)


def _write_archive(records: Records, name: str, folder: Path) -> None:
    write_archive(records, folder / name)


@dataclass
class Share:
    """What one rank writes: archives by their names in the checkpoint; on rank 0 the whole weights and the state."""

    archives: dict[str, Records] = field(default_factory=dict)
    weights: dict[str, Tensor] | None = None
    state: TrainerState | None = None

    def writers(self) -> dict[str, Callable[[Path], object]]:
        """Name -> what writes the file of that name into the folder that it is given. Nothing is read from the run."""
        found: dict[str, Callable[[Path], object]] = {
            name: partial(_write_archive, records, name) for name, records in self.archives.items()
        }
        if self.weights is not None:
            found[WEIGHTS] = self._write_weights
        if self.state is not None:
            found[STATE] = self.state.write
        return found

    def _write_weights(self, folder: Path) -> None:
        save_file(self.weights or {}, str(folder / WEIGHTS))
        usual_rights(folder / WEIGHTS)


class _Copies:
    """DeepSpeed's checkpoint engine that keeps what it is to save; what goes wrong is remembered, not raised.

    The other ranks are in a barrier and would wait for ever.
    """

    def __init__(self, writer: Any, folder: Path, buffers: HostBuffers, archives: dict[str, Records]) -> None:
        self.writer, self.folder, self.buffers, self.archives = writer, folder, buffers, archives
        self.problem: str | None = None
        self.makedirs = lambda path, exist_ok=False: None  # nothing is written now: who writes later makes the folders

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)

    def save(self, state_dict: Any, path: str) -> None:
        try:
            self.archives[Path(path).relative_to(self.folder).as_posix()] = records_of(state_dict, self.buffers)
        except (OSError, RuntimeError, MemoryError) as error:
            self.problem = self.problem or f"{Path(path).name}: {error}"


def take_share(
    engine: Any, folder: Path, state: TrainerState, workers: Workers, buffers: HostBuffers
) -> tuple[Share, str | None]:
    """What this rank is to write under `folder`, and what went wrong; called by all ranks, collectives inside.

    The memory of the share taken before is filled again: that one must have been written.
    """
    buffers.begin()
    share = Share()
    copies = _Copies(engine.checkpoint_engine, folder, buffers, share.archives)
    with replaced_writer(engine, copies):
        engine.save_checkpoint(str(folder), tag=ENGINE, save_latest=False)
    problem = copies.problem
    try:
        first = workers.rank == 0
        weights: dict[str, Tensor] = {}
        if first or engine.zero_optimization_stage() == 3:  # there it takes all ranks
            weights = full_weights(engine, buffers.copy if first else _nothing)
        random = records_of(random_state(workers), buffers)
        share.archives[rng_file(folder, workers.rank).relative_to(folder).as_posix()] = random
        if first:
            share.weights, share.state = weights, state
        if buffers.pinned:
            torch.cuda.synchronize(workers.device)
    except (RuntimeError, MemoryError) as error:
        problem = problem or str(error)
    return share, problem


def _nothing(tensor: Tensor) -> Tensor:
    return torch.empty(0)


@contextmanager
def replaced_writer(engine: Any, writer: Any) -> Iterator[None]:
    """DeepSpeed saves through `writer` in here."""
    before, engine.checkpoint_engine = engine.checkpoint_engine, writer
    # Otherwise DeepSpeed copies a recovery script, useless here, whose copy can fail on one rank alone.
    engine._copy_recovery_script = lambda save_path: None
    try:
        yield
    finally:
        engine.checkpoint_engine = before


def random_state(workers: Workers) -> dict[str, Tensor]:
    """Of this rank's generators."""
    state = {"cpu": torch.get_rng_state()}
    if workers.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(workers.device)
    return state
