"""The most memory that the steps of a run held on each rank: what `cardialign plan` is compared with.

On CUDA it is what PyTorch's allocator had given out (`max_memory_allocated`). On a CPU it is the anonymous memory of
the process without what it had when its engine was made, of which only the engine's own tensors count: libraries and
mapped files do not. Blocks that the C library keeps after they were freed do: `MALLOC_MMAP_THRESHOLD_=65536` has it
give them back. Writing a checkpoint is left out where the system lets the mark be set back, and so is the copy of it
that is written behind the steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

STATUS = Path("/proc/self/status")
SET_BACK = Path("/proc/self/clear_refs")
KIB = 1024
MEANING = {
    "cuda": "the most that PyTorch's allocator had given out during a step (max_memory_allocated)",
    "cpu": "the most anonymous memory of the process during a step (VmHWM - RssFile - RssShmem), less what it had when "
    "the engine was made, plus the engine's tensors",
}


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank.

    baseline_bytes: of a process on a CPU, taken off. engine_bytes: of the tensors of the engine before the first step.
    steps_alone: False where checkpoints count, too, because the mark cannot be set back here.
    """

    rank: int
    baseline_bytes: int
    engine_bytes: int
    peak_bytes: int
    steps_alone: bool


class PeakMemory:
    """The mark of this process. Made of a new engine; `begin` where steps begin, `look` before anything else does."""

    def __init__(self, engine: Any, device: torch.device) -> None:
        self.device = device
        self.highest: int | None = None
        self.steps_alone = True
        self.engine = sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in _tensors(engine))}.values())
        held = None if device.type == "cuda" else _status()
        self.baseline = 0 if held is None else held["RssAnon"] - self.engine

    def begin(self) -> None:
        """From here on counts."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            SET_BACK.write_text("5")
        except OSError:
            self.steps_alone = False

    def look(self, copy: int = 0) -> None:
        """Take the mark into account as it stands. copy: bytes on the host that hold a checkpoint for who writes it
        behind the steps: they are no part of a step, and a plan names them apart."""
        found = None
        if self.device.type == "cuda":
            found = torch.cuda.max_memory_allocated(self.device)
        elif (held := _status()) is not None:
            found = held["VmHWM"] - held["RssFile"] - held["RssShmem"] - self.baseline - copy
        if found is not None:
            self.highest = max(found, self.highest or 0)

    def of_all_ranks(self, step: int, last: int) -> dict[str, Any] | None:
        """What `memory.json` holds of a start that ended after `step` of `last`, on every rank; None where a system
        tells nothing. A collective."""
        rank = dist.get_rank()
        mine = None
        if self.highest is not None:
            mine = asdict(RankMemory(rank, self.baseline, self.engine, self.highest, self.steps_alone))
        everywhere: list[dict[str, Any] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, mine)
        ranks = [each for each in everywhere if each is not None]
        if len(ranks) < len(everywhere):
            return None
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        about: dict[str, Any] = {"device": self.device.type, "name": name, "meaning": MEANING[self.device.type]}
        if self.device.type == "cpu":
            about["bf16_kernels"] = has_bf16_kernels()
        return {"steps": step, "total_steps": last, **about, "ranks": ranks}


def has_bf16_kernels() -> bool:
    """Whether oneDNN, which PyTorch computes with on a CPU, has kernels of bf16 on the processor of this process."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _tensors(engine: Any) -> Iterator[torch.Tensor]:
    """Weights and buffers of the module, what the optimizer updates and keeps; under ZeRO-3 the weights' shares."""
    for parameter in engine.module.parameters():
        yield parameter
        if hasattr(parameter, "ds_tensor"):
            yield parameter.ds_tensor
    yield from engine.module.buffers()
    for group in engine.optimizer.param_groups:
        yield from group["params"]
    for state in engine.basic_optimizer.state.values():  # ZeRO-3 makes them before the first step
        yield from (each for each in state.values() if isinstance(each, torch.Tensor))


def _status() -> dict[str, int] | None:
    """Bytes by name of what Linux says of this process; None elsewhere."""
    try:
        lines = STATUS.read_text().splitlines()
        sizes = dict(line.split(":", 1) for line in lines)
        return {name: int(sizes[name].split()[0]) * KIB for name in ("VmHWM", "RssAnon", "RssFile", "RssShmem")}
    except (OSError, KeyError, ValueError):
        return None
