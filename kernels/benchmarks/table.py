"""The report of `cardialign bench kernels`: what was measured where, with which versions.

And the same as the page FIGURES.md.
"""

from __future__ import annotations

import datetime
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cardialign.kernels.benchmarks.cases import Progress, collect, listed, not_measured, silent
from cardialign.kernels.benchmarks.dispatch import contests
from cardialign.kernels.benchmarks.targets import NO_GPU, outcomes
from cardialign.kernels.benchmarks.timing import copy_rate, gemm_rate

HEADER = (
    "operation",
    "implementation",
    "rounds",
    "forward ms",
    "backward ms",
    "both ms",
    "speed-up",
    "FLOP/s (of GEMM)",
    "bytes/s (of copy)",
    "peak MiB",
)
INTRODUCTION = """\
Medians of interleaved rounds: of each operation the implementations take turns, up to a number of rounds or of seconds,
whichever comes first; "rounds" says how many were counted. The speed-up is that of forward and backward over the first
implementation of the operation. Rates are counted work over measured time, forward and then both, in brackets as a
share of what a GEMM, or a copy, did in the same run. Peak memory is beside the operands. "(auto)" is what
backend="auto" takes there. CPU times are CPU milliseconds of one process that keeps freed memory, as a long run does:
ratios hold on a shared machine, milliseconds vary. Over ranks the wall clock of the slowest counts. The first run on a
machine also compiles."""


def measured_report(
    devices: Sequence[torch.device],
    quick: bool,
    only: Sequence[str] | None = None,
    progress: Progress = silent,
    seconds: float = math.inf,
) -> dict[str, Any]:
    """Everything `collect` finds on each device, with the copy and GEMM rates of the same run beside it.

    Keys: date, quick, only, threads, versions, devices (one dict each: device, name, copy_byte_s, gemm_flop_s), rows,
    skipped, and unmeasured: the cases a GPU would have had (op, size, implementations), where none was measured.
    """
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "quick": quick,
        "only": list(only or ()),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": _triton_version()},
        "devices": [],
        "rows": [],
        "skipped": [],
        "unmeasured": [],
    }
    for device in devices:
        limits = {"copy_byte_s": copy_rate(device), "gemm_flop_s": gemm_rate(device)}
        rows, skipped = collect(device, quick, only, progress, seconds)
        report["devices"].append({"device": device.type, "name": device_name(device), **limits})
        report["rows"] += [with_shares(row, **limits) for row in rows]
        report["skipped"] += [line for line in skipped if line not in report["skipped"]]
    if all(device.type != "cuda" for device in devices):
        for case in listed(torch.device("cuda"), quick, only)[0]:
            report["unmeasured"].append(
                {"op": case.op, "size": case.shown, "implementations": list(case.implementations)}
            )
    return report


def with_shares(row: dict[str, Any], copy_byte_s: float, gemm_flop_s: float) -> dict[str, Any]:
    """The row with every rate also as a share of the device's measured limit."""
    shares = {}
    for part in ("forward", "both"):
        flops, moved = row[f"{part}_flop_s"], row[f"{part}_byte_s"]
        shares[f"{part}_of_gemm"] = None if flops is None else flops / gemm_flop_s
        shares[f"{part}_of_copy"] = None if moved is None else moved / copy_byte_s
    return {**row, **shares}


def device_name(device: torch.device) -> str:
    """Model of the processor, with its number of cores, or of the GPU, as the system names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    models = (
        [line for line in information.read_text().splitlines() if line.startswith("model name")]
        if information.is_file()
        else []
    )
    if models:
        return f"{len(models)}-core CPU ({models[0].partition(':')[2].strip()})"
    return platform.processor() or platform.machine()


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def markdown(report: dict[str, Any]) -> list[str]:
    """The page: promises and verdicts, the table of each device, dispatch, the optimizer step.

    And a plain sentence where no GPU was measured.
    """
    options = " --quick" * report["quick"] + "".join(f" --op {op}" for op in report["only"])
    command = f"cardialign bench kernels{options} --markdown"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    lines = [
        "# Figures of the kernels",
        "",
        f"Measured {report['date']} by `{command} > kernels/benchmarks/FIGURES.md`;",
        f"{versions}.",
        "",
    ]
    lines += [*INTRODUCTION.splitlines(), *_targets(report)]
    for device in report["devices"]:
        lines += _device(report, device)
    if report["unmeasured"]:
        lines += _unmeasured(report["unmeasured"])
    lines += _dispatch(report) + _steps(report)
    return lines + [part for line in report["skipped"] for part in ("", f"Not measured: {line}.")]


def _header(cells: Sequence[str]) -> list[str]:
    return ["", "| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _targets(report: dict[str, Any]) -> list[str]:
    cells = [(each.what, each.measured, each.verdict) for each in outcomes(report)]
    return ["", "## Targets", *_header(("target", "measured", "verdict")), *map(_line, cells)]


def _device(report: dict[str, Any], device: dict[str, Any]) -> list[str]:
    limits = (
        f"copy {amount(device['copy_byte_s'], 'B/s')}, GEMM {amount(device['gemm_flop_s'], 'FLOP/s')} in the same run"
    )
    threads = f", {report['threads']} thread{'s' if report['threads'] > 1 else ''}" if device["device"] == "cpu" else ""
    lines = ["", f"## {device['device'].upper()}", "", f"{device['name']}{threads}: {limits}.", *_header(HEADER)]
    above = ("", "")
    for row in (row for row in report["rows"] if row["device"] == device["device"]):
        group = (row["op"], row["size"])
        lines.append(_line(["" if group == above else f"{row['op']}, {row['size']}", *_cells(row)]))
        above = group
    return lines


def _unmeasured(cases: Sequence[dict[str, Any]]) -> list[str]:
    blank = [""] * (len(HEADER) - 3)
    rows = [
        _line([f"{case['op']}, {case['size']}", ", ".join(case["implementations"]), NO_GPU, *blank]) for case in cases
    ]
    return ["", "## CUDA", "", f"CUDA: {NO_GPU}. What a GPU would be given:", *_header(HEADER), *rows]


def _dispatch(report: dict[str, Any]) -> list[str]:
    found = contests(report["rows"])
    lines = ["", "## Dispatch", ""]
    if not found:
        return [
            *lines,
            f'No Triton kernel was timed: {NO_GPU}, and backend="auto" takes PyTorch everywhere '
            "(`kernels/dispatch.py`).",
        ]
    for contest in found:
        lines += [f"- {contest.op}, {contest.size}:", f"  {contest.sentence()}"]
    return lines


def _steps(report: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for step in report.get("steps", ()):
        if "note" in step:
            lines.append(f"- `{step['recipe']}` on {step['device']}: not measured: {step['note']}")
            continue
        parts = ", ".join(f"{part} {step[f'{part}_ms']:.3g}" for part in ("forward", "backward", "optimizer"))
        use = f", {step['mfu']:.1%} MFU" if step.get("mfu") is not None else ""
        lines.append(
            f"- `{step['recipe']}` on {step['device']}, batch {step['batch']}, {step['precision']}: "
            f"{step['step_ms']:.4g} ms\n  ({parts}), {step['ecg_per_s']:.3g} ECG/s, "
            f"{amount(step['flop_per_step'], 'FLOP')} per step, {step['share_of_gemm']:.0%} of the GEMM rate{use}"
        )
    return ["", "## One optimizer step", "", *lines] if lines else []


def plain(report: dict[str, Any]) -> list[str]:
    """The same for a terminal: columns instead of bars."""
    lines: list[str] = []
    table: list[list[str]] = []
    for line in [*markdown(report), ""]:
        if line.startswith("|"):
            if not line.startswith("|---"):
                table.append([cell.strip() for cell in line.strip("|").split("|")])
            continue
        widths = [max(map(len, column)) for column in zip(*table, strict=True)] if table else []
        lines += [
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        table = []
        lines.append(line.replace("*", "").replace("`", "").lstrip("# "))
    return lines[:-1]


def _cells(row: dict[str, Any]) -> list[str]:
    name = row["implementation"] + (" (auto)" if row["auto"] else "")
    if row["both_ms"] is None:
        return [name, not_measured(row), *[""] * (len(HEADER) - 3)]

    def rates(kind: str, unit: str, limit: str) -> str:
        """forward and both, each with its share."""
        parts = [(row[f"{part}_{kind}"], row[f"{part}_of_{limit}"]) for part in ("forward", "both")]
        shown = [f"{amount(rate, unit)} ({share:.0%})" for rate, share in parts if rate is not None]
        return ", ".join(shown) or "-"

    return [
        name,
        str(row["rounds"]),
        *(_milliseconds(row[f"{part}_ms"]) for part in ("forward", "backward", "both")),
        "-" if row["speedup"] is None else f"{row['speedup']:.2f}x",
        rates("flop_s", "FLOP/s", "gemm"),
        rates("byte_s", "B/s", "copy"),
        "-" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}",
    ]


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def amount(value: float, unit: str) -> str:
    """1.5e9 FLOP/s -> `1.5 GFLOP/s`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
