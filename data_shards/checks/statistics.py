"""Figures of a shard set: lengths, rates, labels, statements, patients, age, sex, quality.

From its index; lengths and rates from a sample of records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cardialign.data_shards.checks.label_coverage import label_coverage
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.signal.codec import decode_header
from cardialign.data_shards.signal.quality import FLAGS

SAMPLE = 5000
TOP = 50
AGE_YEARS = 5.0
CROWDED = 11
"""Patients with this many records or more share one bar."""


def set_statistics(
    shards: ShardSet,
    *,
    sample: int = SAMPLE,
    top: int = TOP,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Counts as plain numbers, lists and dicts, ready for JSON; see `_histogram` for the form of histograms.

    sample: so many records, spread by `seed`, have their payload header and metadata read (all when there are fewer),
    because the index does not hold lengths and original rates. top: so many of the most frequent statements and
    reports. Raises DataError for a record that cannot be read.
    """
    counts = shards.manifest["counts"]
    records = len(shards)
    with_report = int((shards.report >= 0).sum())
    return {
        "path": str(shards.path),
        "source": shards.manifest["source"].get("name"),
        "fingerprint": shards.fingerprint,
        "records": records,
        "patients": int(np.unique(shards.patients).size),
        "shards": len(shards.shard_names),
        "bytes": sum(shard["bytes"] for shard in shards.manifest["shards"]),
        "rejected": counts["rejected"],
        "signal": {
            "sampling_rate": shards.spec.sampling_rate,
            "seconds": shards.spec.seconds,
            "samples": shards.spec.samples,
        },
        "payload_bytes": _spread(shards.size),
        "reports": {
            "with": with_report,
            "without": records - with_report,
            "distinct": counts["reports"],
            **_reports(shards, top),
        },
        "labels": _labels(shards),
        "records_per_patient": _per_patient(shards),
        "folds": {
            str(fold): int(number) for fold, number in zip(*np.unique(shards.fold, return_counts=True), strict=True)
        },
        "age_years": _ages(shards.age_years),
        "sex": {name: int((shards.sex == code).sum()) for code, name in ((1, "female"), (2, "male"), (0, "unknown"))},
        "quality": {
            "without_remark": int((shards.quality == 0).sum()),
            **{flag: int((shards.quality >> bit & 1).sum()) for bit, flag in enumerate(FLAGS)},
        },
        "unusable_leads": _unusable_leads(shards),
        **_sampled(shards, sample, seed, progress),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    """Mean and the quantiles that describe a skewed distribution; {} without values."""
    if not values.size:
        return {}
    quantiles = np.quantile(values, [0, 0.05, 0.5, 0.95, 1])
    names = ("least", "p05", "median", "p95", "most")
    return {"mean": float(values.mean()), **{name: float(value) for name, value in zip(names, quantiles, strict=True)}}


def _histogram(values: np.ndarray, width: float) -> dict[str, list[float] | list[int]]:
    """{"edges": n + 1 bin edges at multiples of `width`, "counts": n numbers}; empty lists without values."""
    if not values.size:
        return {"edges": [], "counts": []}
    first, last = math.floor(values.min() / width), math.floor(values.max() / width) + 1
    if last == first + 1:  # one bin alone would fill a chart and tell nothing
        first, last = first - 1, last + 1
    edges = np.arange(first, last + 1) * width
    return {"edges": edges.tolist(), "counts": np.histogram(values, edges)[0].tolist()}


def _per_patient(shards: ShardSet) -> dict[str, Any]:
    sizes = np.unique(shards.patients, return_counts=True)[1]
    bars = np.bincount(np.minimum(sizes, CROWDED), minlength=CROWDED + 1)[1:]
    named = {**{str(number): int(bars[number - 1]) for number in range(1, CROWDED)}, f"{CROWDED}+": int(bars[-1])}
    return {**_spread(sizes), "patients_with": named}


def _ages(ages: np.ndarray) -> dict[str, Any]:
    """90.0 and more is how some publishers write "older than 89"; it is shown as it stands."""
    known = ages[np.isfinite(ages)]
    return {
        "known": int(known.size),
        "unknown": int(ages.size - known.size),
        **_spread(known),
        "histogram": _histogram(known, AGE_YEARS),
    }


def _labels(shards: ShardSet) -> dict[str, Any]:
    """Label set -> records that are labelled in it, records per code, the most frequent first, and what it does not
    know."""
    everything = np.arange(len(shards))
    result = {}
    for name in shards.label_sets:
        codes, matrix, labelled = shards.labels(everything, name)
        records = matrix.sum(axis=0)
        order = np.argsort(-records, kind="stable")
        per_record = np.bincount(matrix[labelled].sum(axis=1)) if labelled.any() else np.zeros(1, dtype=int)
        result[name] = {
            "labelled": int(labelled.sum()),
            "codes": {codes[i]: int(records[i]) for i in order},
            "codes_per_record": {str(number): int(value) for number, value in enumerate(per_record) if value},
            **asdict(label_coverage(shards, everything, name)),
        }
    return result


def _reports(shards: ShardSet, top: int) -> dict[str, Any]:
    """Statements by the records that hold them, statements per record, and the reports that most records share; what
    differs in letter case alone counts together."""
    weights = shards.reports.column("count").to_numpy()
    statements: list[Sequence[str]] = shards.reports.column("statements").to_pylist()
    frequency: dict[str, int] = {}
    spelled: dict[str, str] = {}
    per_record: dict[int, int] = {}
    for report, weight in zip(statements, weights.tolist(), strict=True):
        per_record[len(report)] = per_record.get(len(report), 0) + weight
        for folded in {
            statement.casefold(): spelled.setdefault(statement.casefold(), statement) for statement in report
        }:
            frequency[folded] = frequency.get(folded, 0) + weight
    frequent = sorted(frequency.items(), key=lambda item: (-item[1], item[0]))
    texts: dict[str, int] = {}
    written: dict[str, str] = {}
    for text, weight in zip(shards.reports.column("text").to_pylist(), weights.tolist(), strict=True):
        folded = text.casefold()
        written.setdefault(folded, text)
        texts[folded] = texts.get(folded, 0) + weight
    shared = sorted(texts.items(), key=lambda item: -item[1])[:top]
    return {
        "records_in_shared_reports": int(weights[weights > 1].sum()),
        "distinct_statements": len(frequency),
        "statements": {spelled[folded]: number for folded, number in frequent[:top]},
        "statements_once": sum(1 for _, number in frequent if number == 1),
        "statements_per_record": {str(number): per_record[number] for number in sorted(per_record)},
        "texts": {written[folded]: number for folded, number in shared},
    }


def _unusable_leads(shards: ShardSet) -> dict[str, int]:
    """Records in which a lead is missing or unusable, by lead; every lead in their usual order."""
    unusable = ~shards.lead_masks(np.arange(len(shards)))
    return {lead: int(number) for lead, number in zip(STANDARD_LEADS, unusable.sum(axis=0), strict=True)}


def _sampled(shards: ShardSet, sample: int, seed: int, progress: Callable[[int, int], None] | None) -> dict[str, Any]:
    """Valid length and original rate of a sample of records, in the order of the shards."""
    rows = (
        np.arange(len(shards))
        if len(shards) <= sample
        else np.sort(np.random.default_rng(seed).permutation(len(shards))[:sample])
    )
    seconds = np.empty(rows.size)
    rates: dict[float, int] = {}
    for done, row in enumerate(rows.tolist(), start=1):
        try:
            header = decode_header(shards.read_payload(row))
        except DataError as error:
            raise DataError(f"record {shards.key(row)}: {error.problem}", error.remedy) from error
        seconds[done - 1] = header.valid_samples / header.sampling_rate
        rate = float(shards.read_metadata(row)["extra"].get("original_sampling_rate", header.sampling_rate))
        rates[rate] = rates.get(rate, 0) + 1
        if progress is not None:
            progress(done, rows.size)
    padded = int((seconds < shards.spec.seconds - 0.5 / shards.spec.sampling_rate).sum())
    return {
        "sampled_records": int(rows.size),
        "valid_seconds": {
            **_spread(seconds),
            "padded_records": padded,
            "histogram": _histogram(seconds, max(shards.spec.seconds / 20, 1e-3)),
        },
        "original_sampling_rate": {f"{rate:g}": rates[rate] for rate in sorted(rates)},
    }
