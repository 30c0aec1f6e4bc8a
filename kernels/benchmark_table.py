"""The report of `cardialign bench kernels`: what was measured where, with which versions, and the same as a Markdown table for a README."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kernels.benchmark import collect, copy_rate, gemm_rate

HEADER = (
    "operation",
    "implementation",
    "forward ms",
    "backward ms",
    "both ms",
    "speed-up",
    "FLOP/s (of GEMM)",
    "bytes/s (of copy)",
    "peak MiB",
)
NO_GPU = "CUDA: not measured on a GPU."


def measured_report(devices: Sequence[torch.device], quick: bool, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Everything `collect` finds on each device, with the copy and GEMM rates of the same run beside it.

    Keys: date, quick, threads, versions, devices (one dict each: device, name, copy_byte_s, gemm_flop_s), rows, skipped.
    """
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "quick": quick,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": _triton_version()},
        "devices": [],
        "rows": [],
        "skipped": [],
    }
    for device in devices:
        rows, skipped = collect(device, quick, only)
        limits = {"copy_byte_s": copy_rate(device), "gemm_flop_s": gemm_rate(device)}
        report["devices"].append({"device": device.type, "name": device_name(device), **limits})
        report["rows"] += [with_shares(row, **limits) for row in rows]
        report["skipped"] += [line for line in skipped if line not in report["skipped"]]
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
    """Model of the processor or GPU, as the system names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def markdown(report: dict[str, Any]) -> list[str]:
    """The table of each device, to paste into a README, and a plain sentence where no GPU was measured. Rates are forward, then both."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    sizes = "small sizes, few rounds" if report["quick"] else "medians of interleaved rounds"
    lines = [f"Measured {report['date']} with `cardialign bench kernels` ({sizes}); {versions}."]
    for device in report["devices"]:
        limits = f"copy {amount(device['copy_byte_s'], 'B/s')}, GEMM {amount(device['gemm_flop_s'], 'FLOP/s')} in the same run"
        where = "CPU milliseconds" if device["device"] == "cpu" else "CUDA"
        threads = f", {report['threads']} thread{'s' if report['threads'] > 1 else ''}" if device["device"] == "cpu" else ""
        lines += ["", f"**{where}**, {device['name']}{threads}: {limits}."]
        lines += ["", "| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
        above = ("", "")
        for row in (row for row in report["rows"] if row["device"] == device["device"]):
            group = (row["op"], row["size"])
            lines.append("| " + " | ".join(["" if group == above else f"{row['op']}, {row['size']}", *_cells(row)]) + " |")
            above = group
    if all(device["device"] != "cuda" for device in report["devices"]):
        lines += ["", NO_GPU]
    return lines + [part for line in report["skipped"] for part in ("", f"Not measured: {line}.")]


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
        lines += ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
        table = []
        lines.append(line.replace("**", "").replace("*", ""))
    return lines[:-1]


def _cells(row: dict[str, Any]) -> list[str]:
    if row["both_ms"] is None:
        return [row["implementation"], f"not measured: {row['note']}", *[""] * (len(HEADER) - 3)]

    def rates(kind: str, unit: str, limit: str) -> str:
        """forward and both, each with its share."""
        parts = [(row[f"{part}_{kind}"], row[f"{part}_of_{limit}"]) for part in ("forward", "both")]
        shown = [f"{amount(rate, unit)} ({share:.0%})" for rate, share in parts if rate is not None]
        return ", ".join(shown) or "-"

    return [
        row["implementation"],
        *(f"{row[f'{part}_ms']:.3g}" for part in ("forward", "backward", "both")),
        "-" if row["speedup"] is None else f"{row['speedup']:.2f}x",
        rates("flop_s", "FLOP/s", "gemm"),
        rates("byte_s", "B/s", "copy"),
        "-" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}",
    ]


def amount(value: float, unit: str) -> str:
    """1.5e9 FLOP/s -> `1.5 GFLOP/s`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
