"""The measuring core of `cardialign bench kernels`: one way to time, to count memory and to state a rate as a share of what the device can do.

An operation is measured by a module of `MODULES` with `rows(device, quick) -> list[dict]`, which usually is one call of `measure`. Times on the
CPU are CPU seconds of this process, so that other work on the machine disturbs less; set the number of threads before. On CUDA they are device
events after the second-level cache was overwritten. Implementations take turns, so that a machine that slows down slows all of them alike.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kernels.benchmark_memory import peak_memory

MODULES: dict[str, str] = {
    "contrastive": "kernels.benchmark_contrastive",
    "patch-embed": "kernels.benchmark_patch_embed",
    "attention": "kernels.benchmark_attention",
}
"""Operation -> the module that measures it; one that is not installed is reported, not an error."""

FLUSH_BYTES = 256 << 20  # five times the second-level cache of an H200


@dataclass(frozen=True)
class Job:
    """One implementation on fixed operands. run: () -> output, or several; leaves: the operands whose gradients the backward pass computes."""

    run: Callable[[], Tensor | Sequence[Tensor]]
    leaves: Sequence[Tensor]


@dataclass(frozen=True)
class Timing:
    """Medians in milliseconds; forward records the graph, as in training. both is the median of the sums, not the sum of the medians."""

    forward_ms: float
    backward_ms: float
    both_ms: float


@dataclass(frozen=True)
class Work:
    """Counted work of one call, whatever the implementation: FLOPs (a multiply-add is 2) and bytes that must move at least once."""

    forward_flops: float | None = None
    both_flops: float | None = None
    forward_bytes: float | None = None
    both_bytes: float | None = None


def interleaved_medians(jobs: dict[str, Job], device: torch.device, rounds: int, warmup: int = 1) -> dict[str, Timing | None]:
    """Every job once per round, in turn; the first `warmup` rounds are not counted. None for a job that ran out of device memory.

    Raises ValueError for fewer than one counted round.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; measure at least one round")
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    failed: set[str] = set()
    gradients: dict[str, list[Tensor]] = {}
    for number in range(warmup + rounds):
        for name, job in jobs.items():
            if name in failed:
                continue
            try:
                sample = _once(job, gradients, name, flush)
            except torch.OutOfMemoryError:
                failed.add(name)
                continue
            if number >= warmup:
                samples[name].append(sample)
    return {name: None if name in failed else _medians(pairs) for name, pairs in samples.items()}


def _medians(pairs: list[tuple[float, float]]) -> Timing:
    return Timing(
        forward_ms=statistics.median(forward for forward, _ in pairs),
        backward_ms=statistics.median(backward for _, backward in pairs),
        both_ms=statistics.median(forward + backward for forward, backward in pairs),
    )


def _once(job: Job, gradients: dict[str, list[Tensor]], name: str, flush: Tensor | None) -> tuple[float, float]:
    """(forward ms, backward ms) of one call. The gradient of the output is dense and made once: an expanded one would be copied by some."""
    if flush is not None:
        flush.zero_()
    clock = _CpuClock() if flush is None else _CudaClock()
    clock.mark()
    made = job.run()
    clock.mark()
    outputs = [made] if isinstance(made, Tensor) else list(made)
    if job.leaves and name not in gradients:
        gradients[name] = [torch.randn_like(output) for output in outputs]
        if flush is not None:
            flush.zero_()
    clock.mark()
    if job.leaves:
        torch.autograd.grad(outputs, list(job.leaves), gradients[name], allow_unused=True)
    clock.mark()
    forward, _, backward = clock.milliseconds()
    return forward, backward if job.leaves else 0.0


class _CpuClock:
    def __init__(self) -> None:
        self._at: list[float] = []

    def mark(self) -> None:
        self._at.append(time.process_time() * 1e3)

    def milliseconds(self) -> list[float]:
        """Between neighbouring marks."""
        return [b - a for a, b in pairwise(self._at)]


class _CudaClock:
    def __init__(self) -> None:
        self._at: list[torch.cuda.Event] = []

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._at.append(event)

    def milliseconds(self) -> list[float]:
        torch.cuda.synchronize()
        return [a.elapsed_time(b) for a, b in pairwise(self._at)]


def measure(
    op: str,
    builder: str,
    implementations: Iterable[str],
    size: dict[str, Any],
    device: torch.device,
    *,
    work: Work,
    rounds: int,
    shown: str | None = None,
    warm_size: dict[str, Any] | None = None,
    memory: bool = True,
) -> list[dict[str, Any]]:
    """Rows of one operation at one size, one per implementation, the first being the baseline of the ratio `speedup`.

    builder: "package.module:function" with function(implementation, device, **size) -> Job; it is called by name because peak memory on the
    CPU is measured in a process of its own. An implementation that this machine lacks raises ValueError there and its row says why.
    warm_size: a small size run once before memory is read, so that libraries are loaded by then and do not count. shown: the size in words.
    """
    build = resolve(builder)
    jobs: dict[str, Job] = {}
    notes: dict[str, str] = {}
    for name in implementations:
        try:
            jobs[name] = build(name, device, **size)
        except ValueError as error:
            notes[name] = str(error)
    timings = interleaved_medians(jobs, device, rounds)
    del jobs
    rows = []
    for name in (*timings, *notes):
        timing = timings.get(name)
        if timing is None and name not in notes:
            notes[name] = "out of device memory"
        peak = peak_memory(builder, name, device, size, warm_size) if memory and timing is not None else None
        rows.append(row(op, name, device, shown or words(size), timing, work, peak, notes.get(name, "")))
    first = rows[0]["both_ms"]
    for each in rows:
        each["speedup"] = first / each["both_ms"] if first and each["both_ms"] else None
    return rows


def row(
    op: str, implementation: str, device: torch.device, size: str, timing: Timing | None, work: Work, peak_mib: float | None, note: str = ""
) -> dict[str, Any]:
    """One line of the table: every key is always there, None where it was not measured. Times in ms, rates in FLOP/s and bytes/s."""

    def rate(amount: float | None, ms: float | None) -> float | None:
        return amount / (ms * 1e-3) if amount is not None and ms else None

    forward = timing.forward_ms if timing else None
    both = timing.both_ms if timing else None
    return {
        "op": op,
        "implementation": implementation,
        "device": device.type,
        "size": size,
        "forward_ms": forward,
        "backward_ms": timing.backward_ms if timing else None,
        "both_ms": both,
        "speedup": None,
        "forward_flop_s": rate(work.forward_flops, forward),
        "both_flop_s": rate(work.both_flops, both),
        "forward_byte_s": rate(work.forward_bytes, forward),
        "both_byte_s": rate(work.both_bytes, both),
        "peak_mib": peak_mib,
        "note": note,
    }


def words(size: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in size.items())


def resolve(builder: str) -> Callable[..., Any]:
    """The function that "package.module:function" names."""
    module, _, name = builder.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def copy_rate(device: torch.device, rounds: int = 5, mib: int = 64) -> float:
    """Bytes per second of a large copy, read and write both counted. On CUDA 2 GiB are copied, so that no cache helps."""
    size = (2 << 30) if device.type == "cuda" else mib << 20
    source = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    timing = interleaved_medians({"copy": Job(lambda: target.copy_(source), ())}, device, rounds)["copy"]
    assert timing is not None
    return 2 * size / (timing.forward_ms * 1e-3)


def gemm_rate(device: torch.device, rounds: int = 5, side: int | None = None) -> float:
    """FLOP/s of a square matrix product: bf16 on CUDA (side 8192), float32 on the CPU (side 768)."""
    side = side or (8192 if device.type == "cuda" else 768)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    timing = interleaved_medians({"gemm": Job(lambda: a @ b, ())}, device, rounds)["gemm"]
    assert timing is not None
    return 2 * side**3 / (timing.forward_ms * 1e-3)


def collect(device: torch.device, quick: bool, only: Sequence[str] | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows of the operations in `only`, default all; one sentence per operation that is not there).

    quick: small sizes and few rounds. Raises ValueError for an unknown operation and for CUDA where there is none.
    """
    unknown = sorted(set(only or ()) - set(MODULES))
    if unknown:
        raise ValueError(f"unknown operation {', '.join(unknown)}; known: {', '.join(MODULES)}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is usable here; measure the CPU, or run on a machine with a GPU and a CUDA build of PyTorch")
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    for op, module in MODULES.items():
        if only and op not in only:
            continue
        if importlib.util.find_spec(module) is None:
            skipped.append(f"{op}: the module {module} is not part of this installation")
            continue
        rows += importlib.import_module(module).rows(device, quick)
    return rows, skipped
