"""The figures of a shard set as one self-contained page with histograms; `templates/set.html` is how it looks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from cardialign.cluster.pages.charts import column_chart, frequency_bars, histogram
from cardialign.cluster.pages.page import write_page

BARS = 20
Section = dict[str, Any]


def write_set_page(path: Path, figures: Mapping[str, Any]) -> Path:
    """Write the page of `cardialign.data_shards.checks.statistics.set_statistics` to `path` and return it.

    A file that is there is replaced in one step.
    """
    signal, fingerprint = figures["signal"], figures["fingerprint"]
    return write_page(
        path,
        "set.html",
        title=f"Shard set {figures['source'] or ''}".strip(),
        summary=f"12 leads, {signal['seconds']:g} s at {signal['sampling_rate']:g} Hz. Fingerprint {fingerprint[:16]}.",
        tiles=_tiles(figures),
        sections=[_people(figures), *_labels(figures), _reports(figures), _signals(figures)],
        fingerprint=fingerprint,
    )


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


def _tile(figure: str, *lines: str, main: bool = False) -> dict[str, Any]:
    return {"figure": figure, "lines": lines, "main": main}


def _tiles(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    reports, records, shards = figures["reports"], figures["records"], figures["shards"]
    patients, size = figures["patients"], figures["bytes"]
    turned_away = [f"{count:,} turned away: {name}" for name, count in figures["rejected"].items()]
    each = f"{records / max(1, patients):.2f} records each"
    unremarkable = _share(figures["quality"]["without_remark"], records)
    return [
        _tile(f"{records:,}", f"records in {shards:,} shard{'s' * (shards != 1)}", *turned_away, main=True),
        _tile(f"{patients:,}", "patients", each),
        _tile(f"{reports['distinct']:,}", "distinct reports", f"{reports['without']:,} records without one"),
        _tile(_bytes(size), "on disk", f"{_bytes(size / max(1, records))} per record"),
        _tile(unremarkable, "of the records without a quality remark"),
    ]


def _section(title: str, *charts: str, words: str = "") -> Section:
    return {"title": title, "words": words, "charts": charts}


def _people(figures: Mapping[str, Any]) -> Section:
    ages = figures["age_years"]
    edges, counts = ages["histogram"]["edges"], ages["histogram"]["counts"]
    median = f", median {ages['median']:.1f} years" if ages["known"] else ""
    note = f"age known for {ages['known']:,} records{median}"
    several = figures["records_per_patient"]["patients_with"]
    return _section(
        "Patients",
        histogram(edges, counts, title="Age", unit=note, axis="years"),
        column_chart(figures["sex"], title="Sex", unit="records"),
        column_chart(several, title="Records per patient", unit="patients", axis="records"),
        column_chart(figures["folds"], title="Folds", unit="records", axis="fold"),
    )


def _labels(figures: Mapping[str, Any]) -> list[Section]:
    if not figures["labels"]:
        return []
    charts = []
    for name, labels in figures["labels"].items():
        codes = labels["codes"]
        more = f", the first {BARS} of {len(codes)} codes" if len(codes) > BARS else ""
        unit = f"{labels['labelled']:,} records labelled{more}"
        named = _named(_top(codes), labels.get("names") or {})
        charts.append(frequency_bars(named, labels["labelled"], title=name, unit=unit))
    return [_section("Labels", *charts)]


def _named(codes: Mapping[str, int], names: Mapping[str, str]) -> dict[str, int]:
    """Codes with their names, where one is known that says more than its code."""
    told = {code: names.get(code, "") for code in codes}
    return {
        f"{code}: {told[code]}" if told[code] and told[code].casefold() != code.casefold() else code: count
        for code, count in codes.items()
    }


def _reports(figures: Mapping[str, Any]) -> Section:
    reports, records = figures["reports"], figures["records"]
    if not reports["with"]:
        return _section("Reports", words="No record of this set has a report.")
    shared = _share(reports["records_in_shared_reports"], reports["with"])
    words = (
        f"{reports['with']:,} records ({_share(reports['with'], records)}) have a report. "
        f"{shared} of them share it word for word with another record; "
        f"{reports['distinct_statements']:,} distinct statements, "
        f"{reports['statements_once']:,} of them in one record only."
    )
    statements, texts, known = _top(reports["statements"]), _top(reports["texts"]), reports["with"]
    return _section(
        "Reports",
        frequency_bars(statements, known, title="Statements", unit="records that hold them"),
        frequency_bars(texts, known, title="Whole reports", unit="records that share them"),
        column_chart(
            reports["statements_per_record"], title="Statements per record", unit="records", axis="statements"
        ),
        words=words,
    )


def _signals(figures: Mapping[str, Any]) -> Section:
    lengths, records, sample = figures["valid_seconds"], figures["records"], figures["sampled_records"]
    edges, counts = lengths["histogram"]["edges"], lengths["histogram"]["counts"]
    flags = {name: count for name, count in figures["quality"].items() if name != "without_remark"}
    sampled = "all records" if sample == records else f"a sample of {sample:,} records"
    padded = f"{sampled}; {lengths['padded_records']:,} are padded"
    return _section(
        "Signals",
        frequency_bars(flags, records, title="Quality remarks", unit="records"),
        column_chart(figures["unusable_leads"], title="Missing or unusable leads", unit="records"),
        histogram(edges, counts, title="Length of the signal", unit=padded, axis="seconds"),
        column_chart(figures["original_sampling_rate"], title="Original sampling rate", unit=sampled, axis="Hz"),
    )
