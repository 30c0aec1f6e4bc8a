"""Interval enrichment: what the device measured of each record, in words behind its report.

Most reports of MIMIC-IV-ECG are not the only ones of their kind ("Sinus rhythm. Normal ECG."), and equal reports are
false negatives of one another. Measurements differ from record to record: behind the reports they take these apart.
The measurements are read from the data set's own table; shards do not hold them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cardialign.data_shards.build.overlay import check_new, write_overlay
from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.reading.tables import find_table
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.mimic_tables import Measured
from cardialign.data_shards.sources.shared.intervals import interval_statements
from cardialign.data_shards.sources.shared.join import NO_ID, id_numbers
from cardialign.data_shards.sources.shared.matches import STOP_BELOW, WARN_BELOW, Agreement, judge_agreement

log = logging.getLogger(__name__)

SOURCE, TABLE, KEY = "mimic-iv-ecg", "machine_measurements.csv", "mimic-"
_RECORDS = 1 << 14


def enrich_reports(shard_set: ShardSet, measurements: Path, out: Path) -> dict[str, Any]:
    """Make the new folder `out` of enriched reports; returns the figures.

    measurements: machine_measurements.csv (or .gz), or the folder of the data set that holds it. Records without a
    report stay without one, and those whose row is of another subject without numbers. Raises UserError for a set of
    another source and where `out` exists, DataError for a table that cannot be read, or whose rows are those of other
    records.
    """
    check_new(out)
    source = shard_set.manifest["source"].get("name")
    if source != SOURCE:
        raise UserError(
            f"{shard_set.path} was built from {source}, whose tables hold no measured intervals that are read here",
            f"give a set of {SOURCE}, or complete the reports: `cardialign text complete`",
        )
    table = find_table(measurements, TABLE) if measurements.is_dir() else measurements
    if table is None or not table.is_file():
        raise UserError(f"no {TABLE} at {measurements}", "give the folder of the data set, or the table itself")
    measured = Measured(table)
    studies = _studies(shard_set)
    _, known = measured.of(studies)
    reported = np.asarray(shard_set.report) >= 0
    share = float(known[reported].mean()) if reported.any() else 0.0
    said = f"{table} has a row for {int(known[reported].sum())} of the {int(reported.sum())} records with a report"
    if share < STOP_BELOW:
        raise DataError(said, "give the table of the data set that the shards were built from")
    log.log(logging.WARNING if share < WARN_BELOW else logging.INFO, "join source=%s of=measurements: %s", SOURCE, said)
    strangers = _strangers(shard_set, measured.subjects(studies), table.name)
    counts = {"matched": int(known[reported].sum()), "enriched": 0, "statements": 0}
    statements = _enriched(shard_set, measured, np.where(strangers, NO_ID, studies), counts)
    overlay = write_overlay(shard_set, out, statements, {"kind": "intervals", "measured_rows": measured.rows})
    return {
        "path": str(out),
        "digest": overlay.digest,
        "records": len(shard_set),
        "with_report": int(reported.sum()),
        **counts,
        "distinct_reports": {"before": shard_set.report_count, "after": overlay.reports},
    }


def _strangers(shard_set: ShardSet, subjects: np.ndarray, table: str) -> np.ndarray:
    """bool (records,): whose row in the table is of another person, as far as it can be told. The set knows its
    patients by their hashes alone: the records of one patient must be of one subject, and the other way round.
    Raises DataError where next to none is."""
    named = subjects != NO_ID
    pairs = np.stack([np.asarray(shard_set.patients, dtype=np.int64), subjects], axis=1)
    doubtful = np.zeros(len(shard_set), dtype=bool)
    for one in (0, 1):
        distinct = np.unique(pairs[named], axis=0)
        people, others = np.unique(distinct[:, one], return_counts=True)
        doubtful |= named & np.isin(pairs[:, one], people[others > 1])
    found = Agreement("subject_id", "the shards", table, int(named.sum()), int((named & ~doubtful).sum()))
    found.examples += [
        f"{shard_set.key(row)} is of a patient of several subjects, or of a subject of several patients"
        for row in np.flatnonzero(doubtful)[:1].tolist()
    ]
    judge_agreement(SOURCE, found, STOP_BELOW)
    return doubtful


def _studies(shard_set: ShardSet) -> np.ndarray:
    """int64 (records,): the study of each record, by its key."""
    keys = shard_set.index.column("key").to_pylist()
    return id_numbers(pa.array([key.removeprefix(KEY) for key in keys], pa.string()), "s")


def _enriched(
    shard_set: ShardSet, measured: Measured, studies: np.ndarray, counts: dict[str, int]
) -> Iterator[list[tuple[str, ...]]]:
    table = [tuple(each) for each in shard_set.report_columns(["statements"]).column("statements").to_pylist()]
    report = np.asarray(shard_set.report)
    for start in range(0, len(shard_set), _RECORDS):
        some = slice(start, min(start + _RECORDS, len(shard_set)))
        values, _ = measured.of(studies[some])
        block: list[tuple[str, ...]] = []
        for own, numbers in zip(report[some].tolist(), values.tolist(), strict=True):
            said = interval_statements(numbers) if own >= 0 else ()
            counts["enriched"] += bool(said)
            counts["statements"] += len(said)
            block.append((*table[own], *said) if own >= 0 else ())
        yield block
