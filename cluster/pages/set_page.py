"""The figures of a shard set as one self-contained HTML page with histograms: no script, no external file, every text from outside escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from cardialign.cluster.pages.bar_charts import column_chart, frequency_bars, histogram
from cardialign.cluster.pages.page import write_page

BARS = 20


def write_statistics_page(path: Path, figures: Mapping[str, Any]) -> Path:
    """Write the page of `cardialign.data_shards.checks.statistics.set_statistics` to `path` (replaced in one step) and return it."""
    title = f"Shard set {figures['source'] or ''}".strip()
    body = "\n".join(
        [
            *_head(title, figures),
            *_people(figures),
            *_labels(figures),
            *_reports(figures),
            *_signals(figures),
            _footer(figures),
        ]
    )
    return write_page(path, title, body)


def _tile(value: str, below: str, kind: str = "") -> str:
    return f'<div class="tile {kind}"><b>{value}</b><span>{below}</span></div>'


def _bytes(number: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


def _top(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(islice(counts.items(), BARS))


def _head(title: str, figures: Mapping[str, Any]) -> list[str]:
    signal, reports, records = figures["signal"], figures["reports"], figures["records"]
    shards = figures["shards"]
    turned_away = "".join(f"<br>{count:,} turned away: {escape(name)}" for name, count in figures["rejected"].items())
    facts = f"12 leads, {signal['seconds']:g} s at {signal['sampling_rate']:g} Hz. Fingerprint {figures['fingerprint'][:16]}."
    tiles = [
        _tile(f"{records:,}", f"records in {shards:,} shard{'s' * (shards != 1)}{turned_away}", "main"),
        _tile(f"{figures['patients']:,}", f"patients<br>{records / max(1, figures['patients']):.2f} records each"),
        _tile(f"{reports['distinct']:,}", f"distinct reports<br>{reports['without']:,} records without one"),
        _tile(_bytes(figures["bytes"]), f"on disk<br>{_bytes(figures['bytes'] / max(1, records))} per record"),
        _tile(_share(figures["quality"]["without_remark"], records), "of the records without a quality remark"),
    ]
    return [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(facts)}</p>',
        f'<div class="tiles">{"".join(tiles)}</div>',
    ]


def _panels(*panels: str) -> str:
    return f'<div class="panels">{"".join(panels)}</div>'


def _people(figures: Mapping[str, Any]) -> list[str]:
    ages = figures["age_years"]
    note = f"age known for {ages['known']:,} records" + (
        f", median {ages['median']:.1f} years" if ages["known"] else ""
    )
    return [
        "<h2>Patients</h2>",
        _panels(
            histogram(ages["histogram"]["edges"], ages["histogram"]["counts"], title="Age", unit=note, axis="years"),
            column_chart(figures["sex"], title="Sex", unit="records"),
            column_chart(
                figures["records_per_patient"]["patients_with"],
                title="Records per patient",
                unit="patients",
                axis="records",
            ),
            column_chart(figures["folds"], title="Folds", unit="records", axis="fold"),
        ),
    ]


def _labels(figures: Mapping[str, Any]) -> list[str]:
    if not figures["labels"]:
        return []
    charts = []
    for name, labels in figures["labels"].items():
        codes = labels["codes"]
        more = f", the first {BARS} of {len(codes)} codes" if len(codes) > BARS else ""
        charts.append(
            frequency_bars(
                _top(codes), labels["labelled"], title=name, unit=f"{labels['labelled']:,} records labelled{more}"
            )
        )
    return ["<h2>Labels</h2>", _panels(*charts)]


def _reports(figures: Mapping[str, Any]) -> list[str]:
    reports, records = figures["reports"], figures["records"]
    if not reports["with"]:
        return ["<h2>Reports</h2>", "<p>No record of this set has a report.</p>"]
    shared = _share(reports["records_in_shared_reports"], reports["with"])
    text = (
        f"{reports['with']:,} records ({_share(reports['with'], records)}) have a report. {shared} of them share it word for word with another record; "
        f"{reports['distinct_statements']:,} distinct statements, {reports['statements_once']:,} of them in one record only."
    )
    return [
        "<h2>Reports</h2>",
        f"<p>{text}</p>",
        _panels(
            frequency_bars(
                _top(reports["statements"]), reports["with"], title="Statements", unit="records that hold them"
            ),
            frequency_bars(
                _top(reports["texts"]), reports["with"], title="Whole reports", unit="records that share them"
            ),
            column_chart(
                reports["statements_per_record"], title="Statements per record", unit="records", axis="statements"
            ),
        ),
    ]


def _signals(figures: Mapping[str, Any]) -> list[str]:
    lengths, records = figures["valid_seconds"], figures["records"]
    flags = {name: count for name, count in figures["quality"].items() if name != "without_remark"}
    sampled = (
        "all records"
        if figures["sampled_records"] == records
        else f"a sample of {figures['sampled_records']:,} records"
    )
    return [
        "<h2>Signals</h2>",
        _panels(
            frequency_bars(flags, records, title="Quality remarks", unit="records"),
            column_chart(figures["unusable_leads"], title="Missing or unusable leads", unit="records"),
            histogram(
                lengths["histogram"]["edges"],
                lengths["histogram"]["counts"],
                title="Length of the signal",
                unit=f"{sampled}; {lengths['padded_records']:,} are padded",
                axis="seconds",
            ),
            column_chart(figures["original_sampling_rate"], title="Original sampling rate", unit=sampled, axis="Hz"),
        ),
    ]


def _footer(figures: Mapping[str, Any]) -> str:
    return f"<footer>Written by cardialign shards stats. Fingerprint <span class='mono'>{escape(figures['fingerprint'])}</span></footer>"
