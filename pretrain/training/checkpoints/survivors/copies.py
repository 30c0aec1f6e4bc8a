"""Copies of what each rank would write of a checkpoint, on the rank itself and on its neighbour.

Every N steps a rank takes its part as a checkpoint behind the steps does (`snapshot.take_share`), sends it to rank + 1
and receives that of rank - 1, over gloo and between host memories. When one rank is gone, its neighbour has its part.

Of two steps the copies are held: one is filled again only when all ranks have said that they hold the other. So there
is always a step of which every part is there, wherever a rank dies. Memory: twice its own part, twice its neighbour's.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cardialign.data_shards.files import parse_json
from cardialign.pretrain.run.moves import moved
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.snapshot import HostBuffers, Records, Share, take_share
from cardialign.pretrain.training.checkpoints.state import TrainerState
from cardialign.pretrain.training.collectives import highest
from cardialign.pretrain.training.engine import Workers

log = logging.getLogger(__name__)

CPU = torch.device("cpu")


@dataclass
class _Memory:
    """What the copies of one step fill: this rank's part, and its neighbour's."""

    pinned: bool
    own: HostBuffers = field(init=False)
    theirs: HostBuffers = field(default_factory=HostBuffers)

    def __post_init__(self) -> None:
        self.own = HostBuffers(self.pinned)


@dataclass
class Held:
    """Of one step: the shares that this rank holds, by the rank whose part they are, and the memory they lie in."""

    state: TrainerState
    shares: dict[int, Share]
    memory: _Memory


class NeighbourCopies:
    """Of one rank. seconds: how long the newest took."""

    def __init__(self, engine: Any, run_dir: Path, workers: Workers) -> None:
        self.engine, self.run_dir, self.workers = engine, run_dir, workers
        self.group = dist.new_group(backend="gloo")
        self.seconds = 0.0
        pinned = workers.device.type == "cuda"
        self._memories = [_Memory(pinned), _Memory(pinned)]
        self._held: dict[int, Held] = {}
        self._lock = threading.Lock()
        self._frozen = False

    @property
    def host_bytes(self) -> int:
        return sum(memory.own.bytes + memory.theirs.bytes for memory in self._memories)

    def take(self, state: TrainerState, problem: str | None = None) -> bool:
        """Copy the parts of `state.step`, called by all ranks; whether all of them hold it now.

        problem: what this rank could not write of what belongs to the step. A copy that cannot be made on any rank is
        left out on all, with a line in the log: the run needs none.
        """
        began = time.perf_counter()
        memory = self._free_memory()
        share, failed = take_share(
            self.engine, files.temporary_path(self.run_dir, state.step), state, self.workers, memory.own
        )
        header = json.dumps(_header(share)).encode()
        theirs, more = self._room_for_theirs(header, memory.theirs)
        problem = problem or failed or more
        if highest((problem is not None,), CPU, self.group) != [0]:
            log.warning("step=%d action=no-neighbour-copy reason=%s", state.step, problem or "another rank has it")
            return False
        assert theirs is not None
        self._exchange([_bytes_of(each) for each in _contents(share)], [_bytes_of(each) for each in _contents(theirs)])
        with self._lock:
            self._held[state.step] = Held(state, {self.workers.rank: share, self._left: theirs}, memory)
        highest((0,), CPU, self.group)  # all ranks hold it: the copies before it may go
        self.seconds = time.perf_counter() - began
        moved()
        return True

    def freeze(self) -> Mapping[int, Held]:
        """What is held, by step, for good: the group has lost a rank, and no copy is made any more."""
        with self._lock:
            self._frozen = True
            return dict(self._held)

    @property
    def _left(self) -> int:
        return (self.workers.rank - 1) % self.workers.world_size

    def _free_memory(self) -> _Memory:
        """The memory of the older of two steps, which is held no longer."""
        with self._lock:
            if self._frozen:
                raise RuntimeError("this worker group has been given up: its survivors write what they hold")
            while len(self._held) > 1:
                del self._held[min(self._held)]
            used = [held.memory for held in self._held.values()]
            return next(memory for memory in self._memories if not any(memory is each for each in used))

    def _exchange(self, sent: list[Tensor], received: list[Tensor]) -> None:
        """Tensors of bytes to the right, and those of the left into `received`, whose sizes are known."""
        right = (self.workers.rank + 1) % self.workers.world_size
        works = [dist.isend(each, right, group=self.group) for each in sent if each.numel()]
        works += [dist.irecv(each, self._left, group=self.group) for each in received if each.numel()]
        for work in works:
            assert work is not None
            work.wait()

    def _room_for_theirs(self, header: bytes, buffers: HostBuffers) -> tuple[Share | None, str | None]:
        """The share of the left neighbour, still empty, and what went wrong. A collective."""
        size = torch.zeros(1, dtype=torch.int64)
        self._exchange([torch.tensor([len(header)])], [size])
        told = torch.empty(int(size), dtype=torch.uint8)
        self._exchange([torch.frombuffer(bytearray(header), dtype=torch.uint8)], [told])
        try:
            buffers.begin()
            return _empty_share(parse_json(told.numpy().tobytes()), buffers), None
        except (RuntimeError, MemoryError, ValueError) as error:
            return None, f"the part of rank {self._left} cannot be taken: {error}"


def _header(share: Share) -> dict[str, Any]:
    """What the neighbour must know to make room for a share: names and sizes."""
    weights = None
    if share.weights is not None:
        weights = [
            [name, str(each.dtype).removeprefix("torch."), list(each.shape)] for name, each in share.weights.items()
        ]
    return {
        "archives": {name: [[record, size] for record, _, size in each] for name, each in share.archives.items()},
        "weights": weights,
        "state": None if share.state is None else share.state.text(),
    }


def _empty_share(header: dict[str, Any], buffers: HostBuffers) -> Share:
    archives: dict[str, Records] = {
        name: [(record, buffers.lend(size).untyped_storage(), size) for record, size in records]
        for name, records in header["archives"].items()
    }
    share = Share(archives)
    if header["weights"] is not None:
        share.weights = {}
        for name, word, shape in header["weights"]:
            dtype = getattr(torch, word)
            size = dtype.itemsize * torch.Size(shape).numel()
            share.weights[name] = buffers.lend(size).view(dtype).view(shape)
    if header["state"] is not None:
        share.state = TrainerState.of(parse_json(header["state"]))
    return share


def _contents(share: Share) -> Iterator[Any]:
    """What travels, in the order of the header."""
    for records in share.archives.values():
        for _, data, _ in records:
            yield data
    yield from (share.weights or {}).values()


def _bytes_of(content: Any) -> Tensor:
    """(bytes,) of a storage or tensor, in place; of text a copy."""
    if isinstance(content, torch.UntypedStorage):
        return torch.empty(0, dtype=torch.uint8).set_(content)  # type: ignore[arg-type] # of older storages alone
    if isinstance(content, Tensor):
        return content.reshape(-1).view(torch.uint8)
    raw = content.encode() if isinstance(content, str) else bytes(content)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
