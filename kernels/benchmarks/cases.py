"""What `cardialign bench kernels` measures: cases of every operation, each a few implementations on the same operands.

An operation is a module of `MODULES` with `cases(device, quick) -> list[Case]`. It lists them without touching the
device, so that a report can also say what was not measured. Timing is in `timing`, memory in `memory`, tables in
`table`.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cardialign.kernels.benchmarks.memory import keep_freed_blocks
from cardialign.kernels.benchmarks.timing import Job, Timing, interleaved_medians, run_once

MODULES: dict[str, str] = {
    "contrastive": "cardialign.kernels.benchmarks.contrastive",
    "ranks": "cardialign.kernels.benchmarks.ranks",
    "patch-embed": "cardialign.kernels.benchmarks.patch_embed",
    "attention": "cardialign.kernels.benchmarks.attention",
}
"""Operation -> the module that measures it; one that is not installed is reported, not an error."""

Rows = list[dict[str, Any]]
Progress = Callable[[str], None]
"""Told a line before and after every case."""


def silent(line: str) -> None:
    """A `Progress` that shows nothing."""


@dataclass(frozen=True)
class Work:
    """Counted work of one call, whatever the implementation.

    FLOPs (a multiply-add is 2), and bytes that must move at least once.
    """

    forward_flops: float | None = None
    both_flops: float | None = None
    forward_bytes: float | None = None
    both_bytes: float | None = None


@dataclass(frozen=True)
class Case:
    """One operation at one size: what to build, how often to run it, and what is known about it beforehand.

    op, shown: the operation, and the size in words.
    implementations: the first is the baseline of the ratio `speedup`.
    build: function(implementation, device, **size) -> Job; it raises ValueError, with the reason, for what this machine
    lacks.
    warm_size: a small size run once before, so that libraries are loaded by then.
    rounds, seconds, warmup: see `interleaved_medians`.
    absent: those of them that are left out at this size, and why.
    kernels: those that are kernels of ours, which must earn their dispatch against `otherwise`: what backend "auto"
    takes without them.
    scale: the number by which `cardialign.kernels.dispatch` decides about them.
    dispatched: device -> the implementation that backend "auto" takes.
    measured_by: instead of `measure`, for what does not run in this process.
    """

    op: str
    shown: str
    implementations: tuple[str, ...]
    size: dict[str, Any]
    build: Callable[..., Job] | None = None
    work: Work = Work()
    warm_size: dict[str, Any] | None = None
    rounds: int = 15
    seconds: float = 15.0
    warmup: int = 1
    memory: bool = True
    absent: Mapping[str, str] = field(default_factory=dict)
    kernels: tuple[str, ...] = ()
    otherwise: str = ""
    scale: int | None = None
    dispatched: Callable[[torch.device], str] | None = None
    measured_by: Callable[[Case, torch.device], Rows] | None = None

    @property
    def name(self) -> str:
        return f"{self.op}, {self.shown}"


def measure(case: Case, device: torch.device) -> Rows:
    """The rows of one case, one per implementation, with the reason where it could not run."""
    if case.measured_by is not None:
        return case.measured_by(case, device)
    jobs: dict[str, Job] = {}
    notes: dict[str, str] = dict(case.absent)
    for name in case.implementations:
        if name in notes:
            continue
        try:
            jobs[name] = _built(case, name, device)
        except ValueError as error:
            notes[name] = str(error)
        except torch.OutOfMemoryError:
            notes[name] = "out of device memory"
    timings = interleaved_medians(jobs, device, case.rounds, case.warmup, case.seconds, case.memory)
    return compared(case, device, timings, notes)


def _built(case: Case, name: str, device: torch.device) -> Job:
    """The job at the size of the case, with libraries loaded and code compiled."""
    assert case.build is not None
    job = case.build(name, device, **case.size)
    flush = torch.empty(1, dtype=torch.uint8, device=device) if device.type == "cuda" else None
    if job.compiled:
        try:
            run_once(job, {}, name, flush)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no C++ compiler, an unsupported Python: many types, one meaning
            raise ValueError(f"torch.compile does not work here: {str(error).strip().splitlines()[0]}") from error
    elif case.warm_size is not None:
        run_once(case.build(name, device, **case.warm_size), {}, name, flush)
    return job


def compared(case: Case, device: torch.device, timings: Mapping[str, Timing | None], notes: Mapping[str, str]) -> Rows:
    """Rows in the order of the case's implementations.

    `speedup` is the ratio of "both" to that of the first; None where that did not run.
    """
    auto = case.dispatched(device) if case.dispatched is not None else None
    rows = []
    for name in case.implementations:
        timing = timings.get(name)
        note = notes.get(name, "" if timing is not None else "out of device memory")
        rows.append(row(case, name, device, timing, note, auto))
    baseline = rows[0]["both_ms"]
    for each in rows:
        each["speedup"] = baseline / each["both_ms"] if baseline and each["both_ms"] else None
    return rows


def row(
    case: Case,
    implementation: str,
    device: torch.device,
    timing: Timing | None,
    note: str = "",
    auto: str | None = None,
) -> dict[str, Any]:
    """One line of the table: every key is always there, None where it was not measured.

    Times in ms, rates in FLOP/s and bytes/s.
    """

    def rate(amount: float | None, ms: float | None) -> float | None:
        return amount / (ms * 1e-3) if amount is not None and ms else None

    forward = timing.forward_ms if timing else None
    both = timing.both_ms if timing else None
    return {
        "op": case.op,
        "implementation": implementation,
        "device": device.type,
        "size": case.shown,
        "operands": dict(case.size),
        "scale": case.scale,
        "kernel": implementation in case.kernels,
        "otherwise": implementation == case.otherwise,
        "auto": implementation == auto,
        "rounds": timing.rounds if timing else 0,
        "forward_ms": forward,
        "backward_ms": timing.backward_ms if timing else None,
        "both_ms": both,
        "speedup": None,
        "forward_flop_s": rate(case.work.forward_flops, forward),
        "both_flop_s": rate(case.work.both_flops, both),
        "forward_byte_s": rate(case.work.forward_bytes, forward),
        "both_byte_s": rate(case.work.both_bytes, both),
        "peak_mib": timing.peak_mib if timing else None,
        "note": note,
    }


def words(size: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in size.items())


def listed(device: torch.device, quick: bool, only: Sequence[str] | None = None) -> tuple[list[Case], list[str]]:
    """(cases of the operations in `only`, default all; one sentence per operation that is not there).

    Raises ValueError for an unknown one.
    """
    unknown = sorted(set(only or ()) - set(MODULES))
    if unknown:
        raise ValueError(f"unknown operation {', '.join(unknown)}; known: {', '.join(MODULES)}")
    cases: list[Case] = []
    skipped: list[str] = []
    for op, module in MODULES.items():
        if only is not None and op not in only:
            continue
        if importlib.util.find_spec(module) is None:
            skipped.append(f"{op}: the module {module} is not part of this installation")
            continue
        cases += importlib.import_module(module).cases(device, quick)
    return cases, skipped


def _told(row: dict[str, Any]) -> str:
    """A row in a few words."""
    if row["both_ms"] is None:
        return not_measured(row)
    memory = "" if row["peak_mib"] is None else f", {row['peak_mib']:.1f} MiB"
    return f"{row['both_ms']:.3g} ms, {row['rounds']} round{'s' * (row['rounds'] > 1)}{memory}"


def not_measured(row: dict[str, Any]) -> str:
    """Why a row has no figures: it was left out ("not run: ..."), or it could not run."""
    note = str(row["note"])
    return note if note.startswith("not run") else f"not measured: {note}"


def collect(
    device: torch.device,
    quick: bool,
    only: Sequence[str] | None = None,
    progress: Progress = silent,
    seconds: float = math.inf,
) -> tuple[Rows, list[str]]:
    """(rows of all cases of the operations in `only`, default all; one sentence per operation that is not there).

    quick: small sizes, few rounds, no memory. seconds: bound of the counted rounds of a case, below its own.
    Raises ValueError for an unknown operation and for CUDA where there is none.
    """
    cases, skipped = listed(device, quick, only)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "no CUDA device is usable here; measure the CPU, or run on a machine with a GPU and a CUDA build of PyTorch"
        )
    if device.type == "cpu":
        keep_freed_blocks()
    rows: Rows = []
    for number, case in enumerate(cases, start=1):
        progress(f"{device.type} {number}/{len(cases)} {case.name}")
        for each in measure(replace(case, seconds=min(seconds, case.seconds)), device):
            progress(f"    {each['implementation']}: {_told(each)}")
            rows.append(each)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what one case leaves cached must not be missing to the next
    return rows, skipped
