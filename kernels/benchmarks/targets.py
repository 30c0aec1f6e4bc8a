"""What is promised about the kernels, and whether a measured report keeps it.

One line per promise, computed from the rows, never estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from cardialign.kernels.benchmarks.cases import Rows

MIB = float(1 << 20)
Verdict = Literal["pass", "fail", "not measured on a GPU", "not measured in this run"]
NO_GPU: Final = "not measured on a GPU"

Row = dict[str, Any]
Measured = tuple[float, str]
"""(the number that the limit is for, what was measured in words)."""


@dataclass(frozen=True)
class Target:
    """A promise: on `device`, `value` of the report is at most, or at least, `limit`.

    value gives None where the rows for it are not there.
    """

    what: str
    device: str
    limit: float
    at_least: bool
    value: Callable[[dict[str, Any]], Measured | None]


@dataclass(frozen=True)
class Outcome:
    """A promise, what was measured about it, and whether it is kept."""

    what: str
    measured: str
    verdict: Verdict


def outcomes(report: dict[str, Any]) -> list[Outcome]:
    """Every promise against a report (`cardialign.kernels.benchmarks.table.measured_report`)."""
    devices = {each["device"] for each in report["devices"]}
    found = []
    for target in TARGETS:
        value = target.value(report) if target.device in devices else None
        if value is not None:
            number, words = value
            kept = number >= target.limit if target.at_least else number <= target.limit
            found.append(Outcome(target.what, words, "pass" if kept else "fail"))
        elif target.device == "cuda" and "cuda" not in devices:
            found.append(Outcome(target.what, NO_GPU, NO_GPU))
        else:
            found.append(Outcome(target.what, "-", "not measured in this run"))
    return found


def _rows(report: dict[str, Any], device: str, op: str, **operands: Any) -> dict[str, Row]:
    """Rows of one case by implementation."""
    rows: Rows = report["rows"]
    return {
        row["implementation"]: row
        for row in rows
        if row["device"] == device and row["op"] == op and operands.items() <= row["operands"].items()
    }


def _fastest(rows: dict[str, Row], names: Sequence[str], part: str = "both_ms") -> Row | None:
    """The quickest of these implementations that were measured."""
    return min(
        (rows[name] for name in names if name in rows and rows[name][part]),
        key=lambda row: float(row[part]),
        default=None,
    )


def _named(row: Row, text: str) -> str:
    return f"{text} ({row['implementation']})"


OURS = ("tiled", "triton")
FUSED = ("fused", "fused from int16")


def _loss_time(report: dict[str, Any]) -> Measured | None:
    row = _fastest(_rows(report, "cuda", "contrastive", loss="weighted", batch=65536), OURS)
    return None if row is None else (row["both_ms"], _named(row, f"{row['both_ms']:.3g} ms"))


def _loss_memory(device: str, batch: int, **operands: Any) -> Callable[[dict[str, Any]], Measured | None]:
    def value(report: dict[str, Any]) -> Measured | None:
        rows = _rows(report, device, "contrastive", loss="weighted", batch=batch, **operands)
        row = _fastest(rows, OURS)
        if row is None or row["peak_mib"] is None:
            return None
        naive = rows.get("eager")
        beside = ""
        if naive is not None:
            beside = (
                f"; naive {_gigabytes(naive):.2f} GB" if naive["peak_mib"] is not None else f"; naive {naive['note']}"
            )
        return _gigabytes(row), _named(row, f"{_gigabytes(row):.3f} GB") + beside

    return value


def _gigabytes(row: Row) -> float:
    return float(row["peak_mib"]) * MIB / 1e9


def _ratio(
    op: str, ours: Sequence[str], baselines: Sequence[str], part: str, **operands: Any
) -> Callable[[dict[str, Any]], Measured | None]:
    """How many times the fastest of `baselines` takes the time of the fastest of `ours`."""

    def value(report: dict[str, Any]) -> Measured | None:
        rows = _rows(report, "cuda", op, **operands)
        mine, theirs = _fastest(rows, ours, part), _fastest(rows, baselines, part)
        if mine is None or theirs is None:
            return None
        ratio = theirs[part] / mine[part]
        return (
            ratio,
            f"{ratio:.2f}x ({mine['implementation']} {mine[part]:.3g} ms, "
            f"{theirs['implementation']} {theirs[part]:.3g} ms)",
        )

    return value


def _patch_bandwidth(report: dict[str, Any]) -> Measured | None:
    row = _fastest(_rows(report, "cuda", "patch embedding", batch=256, width=256), FUSED, "forward_ms")
    return None if row is None else (row["forward_of_copy"], _named(row, f"{row['forward_of_copy']:.0%} of the copy"))


def _utilisation(report: dict[str, Any]) -> Measured | None:
    steps = [
        step
        for step in report.get("steps", ())
        if step.get("recipe") == "cardialign-base" and step.get("mfu") is not None
    ]
    return None if not steps else (steps[0]["mfu"], f"{steps[0]['mfu']:.1%} ({steps[0]['step_ms']:.3g} ms)")


_SHARE: dict[str, Any] = {"loss": "share", "batch": 4096, "columns": 65536}
_PATCH: dict[str, Any] = {"batch": 256, "width": 256}
TARGETS = (
    Target(
        "weighted loss, B=8,192 d=256 on a CPU: at most 0.4 GB", "cpu", 0.4, False, _loss_memory("cpu", 8192, width=256)
    ),
    Target(
        "weighted loss, B=32,768 d=256 on a CPU: under 1 GB", "cpu", 1.0, False, _loss_memory("cpu", 32768, width=256)
    ),
    Target(
        "weighted loss, 65,536 x 65,536 d=512 d_s=128, forward + backward: at most 60 ms",
        "cuda",
        60.0,
        False,
        _loss_time,
    ),
    Target("the same: under 1 GB beside the features", "cuda", 1.0, False, _loss_memory("cuda", 65536)),
    Target(
        "weighted loss, 4,096 x 65,536: at least 4x eager",
        "cuda",
        4.0,
        True,
        _ratio("contrastive", OURS, ["eager"], "both_ms", **_SHARE),
    ),
    Target(
        "the same: at least 1.5x torch.compile",
        "cuda",
        1.5,
        True,
        _ratio("contrastive", OURS, ["compiled"], "both_ms", **_SHARE),
    ),
    Target("patch embedding, B=256 d=256, forward: at least 60 % of the copy", "cuda", 0.6, True, _patch_bandwidth),
    Target(
        "the same: at least 5x eager (conv1d)",
        "cuda",
        5.0,
        True,
        _ratio("patch embedding", FUSED, ["conv1d"], "forward_ms", **_PATCH),
    ),
    Target(
        "the same: at least 1.5x torch.compile (the better of two)",
        "cuda",
        1.5,
        True,
        _ratio("patch embedding", FUSED, ["compiled conv1d", "compiled unfold"], "forward_ms", **_PATCH),
    ),
    Target("optimizer step of cardialign-base in bf16: at least 40 % MFU", "cuda", 0.4, True, _utilisation),
)
