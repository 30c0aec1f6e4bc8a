"""The table that `cardialign bench data` prints: every figure beside what it is to reach and beside its baselines of
the same run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

HEADER = ("figure", "value", "target", "met", "better than, in this run")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    what: the figure in words; figure: its name among the figures; unit as printed. at_least, below: the target, at most
    one of the two; neither is a figure without a target. against: baseline in words -> name of its figure; the ratio
    says how many times better we are. target_on_real: the target is about real recordings, and on made-up ones the
    figure is only shown.
    """

    what: str
    figure: str
    unit: str = ""
    at_least: float | None = None
    below: float | None = None
    against: Mapping[str, str] | None = None
    target_on_real: bool = False
    lower_is_better: bool = False

    def measured(self, figures: Mapping[str, Any], real: bool) -> dict[str, Any]:
        """what, figure, value, unit, target, met (None: no target here), ratios: baseline -> how many times better."""
        value = figures[self.figure]
        target, met = "", None
        if self.at_least is not None:
            target, met = f">= {self.at_least:,g}", value >= self.at_least
        elif self.below is not None:
            target, met = f"< {self.below:,g}", value < self.below
        if target and self.target_on_real and not real:
            target, met = f"{target} on real records", None
        lower = self.lower_is_better or self.below is not None
        bases = {name: figures[key] for name, key in (self.against or {}).items() if key in figures}
        ratios = {name: base / max(value, 1e-12) if lower else value / max(base, 1e-12) for name, base in bases.items()}
        return {
            "what": self.what,
            "figure": self.figure,
            "value": value,
            "unit": self.unit,
            "target": target,
            "met": met,
            "ratios": ratios,
        }


def measured_rows(rows: Iterable[Row], figures: Mapping[str, Any], real: bool) -> list[dict[str, Any]]:
    """The rows whose figures were measured. real: the user gave the records, they were not made up here."""
    return [row.measured(figures, real) for row in rows if row.figure in figures]


def markdown(report: Mapping[str, Any]) -> list[str]:
    """The report of `measure_data` as a Markdown table, to paste into a README."""
    lines = [_about(report), "", "| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    return lines + ["| " + " | ".join(_cells(row)) + " |" for row in report["table"]]


def plain(report: Mapping[str, Any]) -> list[str]:
    """The same for a terminal, and how many targets were missed."""
    cells = [HEADER, *(_cells(row) for row in report["table"])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    missed = [row["what"] for row in report["table"] if row["met"] is False]
    return [_about(report), "", *lines, "", f"targets missed here: {'; '.join(missed) or 'none'}"]


def _about(report: Mapping[str, Any]) -> str:
    kind = "given recordings" if report["given_records"] else "made-up recordings"
    return (
        f"{report['records']} {kind} of 12 x {report['samples']} samples; rates per core (CPU second), medians of "
        f"{report['rounds']} "
        f"interleaved rounds; reports embedded by {report['text_encoder']}"
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: "-"}[row["met"]]
    ratios = ", ".join(f"{number(ratio)} x {name}" for name, ratio in row["ratios"].items())
    return row["what"], f"{number(row['value'])} {row['unit']}".strip(), row["target"] or "-", met, ratios or "-"


def number(value: float) -> str:
    """Three figures, thousands with commas: 4729.3 -> 4,729; 0.5791 -> 0.579."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
