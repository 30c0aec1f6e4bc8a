"""How `cardialign bench kernels` times: implementations take turns, and medians count.

A number of repeats or of seconds ends it. Times on the CPU are CPU seconds of this process, so that other work on the
machine disturbs less; set the number of threads before. On CUDA they are device events after the second-level cache was
overwritten and while the device still waits: the host queues its launches ahead, as behind the encoders of a training
step. Taking turns, a machine that slows down slows all implementations alike.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from cardialign.kernels.benchmarks.memory import peak_mib

FLUSH_BYTES = 256 << 20  # five times the second-level cache of an H200
HEAD_START_CYCLES = 20_000_000
"""The device idles about 10 ms before a pass is timed, so that it never waits for the host's launches."""


@dataclass(frozen=True)
class Job:
    """One implementation on fixed operands.

    run: () -> output, or several. leaves: the operands whose gradients the backward pass computes.
    compiled: the first pass compiles.
    """

    run: Callable[[], Tensor | Sequence[Tensor]]
    leaves: Sequence[Tensor]
    compiled: bool = False


@dataclass(frozen=True)
class Timing:
    """Medians in milliseconds; forward records the graph, as in training.

    both: the median of the sums, not the sum of the medians. rounds: how many were counted.
    peak_mib: memory of one pass beside its operands, None where it was not asked for or cannot be read.
    """

    forward_ms: float
    backward_ms: float
    both_ms: float
    rounds: int = 1
    peak_mib: float | None = None


def interleaved_medians(
    jobs: dict[str, Job],
    device: torch.device,
    rounds: int,
    warmup: int = 1,
    seconds: float = math.inf,
    memory: bool = False,
) -> dict[str, Timing | None]:
    """Every job once per round, in turn; None for a job that ran out of device memory.

    warmup: the first so many rounds are not counted.
    seconds: bound of the counted rounds together, by the wall clock. The first is always run; another one only if it
    will fit, judged by those before.
    memory: the very first pass of each job also yields its peak memory, exactly where that pass is not counted.
    Raises ValueError for fewer than one counted round.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; measure at least one round")
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    peaks: dict[str, float | None] = {}
    failed: set[str] = set()
    gradients: dict[str, list[Tensor]] = {}
    started = time.monotonic()
    for number in range(warmup + rounds):
        counted = number - warmup
        if counted == 0:
            started = time.monotonic()
        if counted > 0 and (time.monotonic() - started) * (counted + 1) / counted > seconds:
            break
        for name, job in jobs.items():
            if name in failed:
                continue
            try:
                if memory and number == 0:
                    found: list[tuple[float, float]] = []
                    once = functools.partial(run_once, job, gradients, name, flush)
                    peaks[name] = peak_mib(
                        device,
                        lambda once=once, found=found: found.append(once()),  # type: ignore[misc]
                        exact=warmup > 0,
                    )
                    sample = found[0]
                else:
                    sample = run_once(job, gradients, name, flush)
            except torch.OutOfMemoryError:
                failed.add(name)
                continue
            if counted >= 0:
                samples[name].append(sample)
    return {name: None if name in failed else _medians(pairs, peaks.get(name)) for name, pairs in samples.items()}


def _medians(pairs: list[tuple[float, float]], peak: float | None) -> Timing:
    return Timing(
        forward_ms=statistics.median(forward for forward, _ in pairs),
        backward_ms=statistics.median(backward for _, backward in pairs),
        both_ms=statistics.median(forward + backward for forward, backward in pairs),
        rounds=len(pairs),
        peak_mib=peak,
    )


def run_once(job: Job, gradients: dict[str, list[Tensor]], name: str, flush: Tensor | None) -> tuple[float, float]:
    """(forward ms, backward ms) of one call.

    The gradient of the output is dense and made once: an expanded one would be copied by some.
    """
    if flush is not None:
        flush.zero_()
        torch.cuda._sleep(HEAD_START_CYCLES)
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


def copy_rate(device: torch.device, rounds: int = 5, mib: int = 64) -> float:
    """Bytes per second of a large copy, read and write both counted.

    On CUDA 2 GiB are copied, so that no cache helps.
    """
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
