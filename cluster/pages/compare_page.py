"""One self-contained page that puts methods side by side: quality, differences, cost, curves, settings.

Here is what the page says; `templates/compare.html` is how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardialign.cluster.comparison.compare import Comparison
from cardialign.cluster.comparison.costs import NOTES, CostRow, Setting
from cardialign.cluster.comparison.figure import PROBE, Column
from cardialign.cluster.comparison.methods import Member
from cardialign.cluster.comparison.published import SAID, published
from cardialign.cluster.comparison.tables import Table, marked_lines
from cardialign.cluster.pages.page import number, write_page
from cardialign.cluster.pages.plots import MOST, curves_chart, scatter_chart

NOT_MEASURED, NOT_KNOWN = "not measured", "not known"
INTERVALS = (
    "AUROC x 100, mean over classes. Small: 95 % interval by patient. ±: standard deviation over seeds. Bold: the best "
    "of the figures that are comparable. A mean stands where every task has a comparable figure."
)
PAIRED = (
    "AUROC x 100. Whole patients are resampled, the same ones for both; several seeds are averaged within each "
    "resample. Small: 95 % interval; bold where it leaves out 0. Intervals are not corrected for the number of pairs."
)


@dataclass(frozen=True)
class Material:
    """All that the page says. quality: tables by kind; settings: a title and its rows; passed: what was not read."""

    found: Comparison
    quality: Sequence[Table]
    pairs: Table
    costs: Sequence[CostRow]
    column: Column | None
    settings: Sequence[tuple[str, Sequence[Setting]]]
    notes: Sequence[str]
    currency: str
    command: str


def write_compare_page(path: Path, material: Material) -> Path:
    """Write the page to `path` (replaced in one step) and return it."""
    found = material.found
    shown = {
        (table.title.lower(), row.name)
        for table in material.quality
        for _, rows in table.blocks
        for row in rows
        if row.kind == "published"
    }
    return write_page(
        path,
        "compare.html",
        title="Comparison",
        summary=_summary(material),
        tiles=_tiles(material),
        quality=material.quality,
        intervals=INTERVALS,
        marks=marked_lines(found),
        published=_published(shown) if shown else None,
        pairs=material.pairs,
        paired=PAIRED,
        unpaired=found.unpaired,
        remarks=found.remarks(),
        costs=_costs(material),
        scatter=_scatter(material),
        charts=_charts([member for method in found.methods for member in method.members]),
        settings=material.settings,
        members=_members(found),
        notes=material.notes,
        command=material.command,
    )


def _summary(material: Material) -> str:
    own = [method.name for method in material.found.methods if not method.floor]
    named = ", ".join(own[:8]) + (f" and {len(own) - 8} more" if len(own) > 8 else "")
    return f"{named}: what they are worth, what they cost, and in what they differ."


def _tiles(material: Material) -> list[dict[str, Any]]:
    found = material.found
    own = [method for method in found.methods if not method.floor]
    runs = sum(len(method.members) for method in own)
    clear = sum(each.low > 0 or each.high < 0 for each in found.differences)
    tiles: list[tuple[str, str, str]] = [
        (number(len(own)), "methods", f"{number(runs)} runs or results"),
        (number(len(found.columns)), "tasks and shares", "with a figure"),
        (number(len(found.marks())), "figures", "not comparable"),
        (f"{clear} of {len(found.differences)}", "paired differences", "with an interval without 0"),
    ]
    return [{"figure": figure, "lines": lines, "main": k == 0} for k, (figure, *lines) in enumerate(tiles)]


def _published(shown: set[tuple[str, str]]) -> dict[str, Any]:
    """Protocols and sources of the rows shown, and the reruns that contradict some."""
    facts, probed = published(), {method for kind, method in shown if kind == PROBE}
    by: dict[tuple[str, str], list[str]] = {}
    for row in facts.rows:
        if (row.kind, row.method) in shown:
            by.setdefault((row.protocol, row.source), []).append(row.method)
    return {
        "said": SAID,
        "version": facts.version,
        "sources": [(", ".join(methods), *key) for key, methods in by.items()],
        "reruns": [each for each in facts.reruns if each["method"] in probed],
    }


def _costs(material: Material) -> dict[str, Any] | None:
    """Columns of the whole run, then of a million ECGs; prices where some were given."""
    rows = material.costs
    if not rows:
        return None
    priced = any(row.price is not None for row in rows)
    price = f"price, {material.currency}" if material.currency else "price"
    hours = ["hours", *([price] if priced else []), "kWh"]
    run = ["on", "records trained", "records/s", "M param.", "M trained", "GFLOP a record", *hours]
    return {
        "run": run,
        "million": hours,
        "rows": [(row.name, _cells(row, priced)) for row in rows],
        "notes": [*NOTES, *([] if priced else ["No --price was given."])],
        "quality": "" if material.column is None else str(material.column),
    }


def _cells(row: CostRow, priced: bool) -> list[str]:
    cost = row.cost
    device = "" if cost.kind is None else f"{cost.devices or '?'} x {cost.kind}"

    def spent(hours: float | None, price: float | None, kwh: float | None) -> list[str]:
        return [_told(hours), *([_told(price)] if priced else []), _told(kwh)]

    return [
        "–" if row.quality is None else f"{row.quality:.2f}",
        device or NOT_KNOWN,
        _told(cost.records),
        _told(cost.records_per_second),
        _told(None if cost.parameters is None else cost.parameters / 1e6),
        _told(None if cost.trained_parameters is None else cost.trained_parameters / 1e6),
        _told(cost.gflop),
        *spent(cost.hours, row.price, cost.kwh),
        *spent(cost.per_million(cost.hours), cost.per_million(row.price), cost.per_million(cost.kwh)),
    ]


def _told(value: float | None) -> str:
    return NOT_MEASURED if value is None else number(value)


def _scatter(material: Material) -> list[str]:
    """Quality against hours, of devices of one kind each: hours of others are not the same thing."""
    if material.column is None:
        return []
    units = dict.fromkeys(row.cost.unit for row in material.costs if row.cost.hours)
    charts = []
    for unit in units:
        points = [
            (row.name, row.cost.hours, row.quality)
            for row in material.costs
            if row.cost.unit == unit and row.cost.hours and row.quality is not None
        ]
        chart = scatter_chart(
            points, title="Quality against cost", unit=str(material.column), axis=f"{unit}, logarithmic"
        )
        charts += [chart] if chart else []
    return charts


def _charts(members: Sequence[Member]) -> list[str]:
    """Loss curves per loss (those of other methods have other units), then throughput; MOST runs a chart."""
    runs = [each for each in members if each.source.trace]
    by_loss: dict[str, list[Member]] = {}
    for each in runs:
        by_loss.setdefault(_loss_of(each), []).append(each)
    charts = []
    for loss, own in by_loss.items():
        charts += _together(own, "loss", f"Loss, {loss}", "", smooth=True)
    charts += _together(runs, "records_per_second", "Throughput", "records/s", smooth=True, from_zero=True)
    return charts


def _loss_of(member: Member) -> str:
    method = (member.source.config or {}).get("method")
    name = method.get("name") if isinstance(method, dict) else None
    return name if isinstance(name, str) else "method not known"


def _together(members: Sequence[Member], key: str, title: str, unit: str, **how: bool) -> list[str]:
    series = [(each.name, *_series(each.source.trace, key)) for each in members]
    series = [each for each in series if each[1]]
    pieces = [series[k : k + MOST] for k in range(0, len(series), MOST)]
    charts = [
        curves_chart(piece, title=title + (f" ({k + 1} of {len(pieces)})" if len(pieces) > 1 else ""), unit=unit, **how)
        for k, piece in enumerate(pieces)
    ]
    return [chart for chart in charts if chart]


def _series(trace: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    rows = [(line["step"], line[key]) for line in trace if isinstance(line.get(key), int | float)]
    return [float(step) for step, _ in rows], [float(value) for _, value in rows]


def _members(found: Comparison) -> list[dict[str, Any]]:
    """What each method is made of."""
    return [
        {
            "name": method.name,
            "of": [
                {"name": each.name, "what": each.source.what, "path": str(each.source.path),
                 "remarks": "; ".join(each.source.remarks)}
                for each in method.members
            ],
        }
        for method in found.methods
        if not method.floor
    ]  # fmt: skip
