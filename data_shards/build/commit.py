"""The last step of a build: finished shards and their sidecars -> index, report table, list of rejects, and last of all the manifest."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa

from cardialign.data_shards.build.index_rows import index_batch, write_index
from cardialign.data_shards.build.report_table import ReportTable
from cardialign.data_shards.build.shard_task import read_sidecar
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.files import commit_file, sha256_of, sync, temporary_path
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.shard_set.layout import (
    INDEX,
    MANIFEST,
    REJECTS,
    REPORTS,
    SCHEMA_VERSION,
    WORK_FOLDER,
    content_fingerprint,
)
from cardialign.data_shards.signal.quality import FLAGS
from cardialign.data_shards.sources.base import Source


def commit_set(out: Path, slices: int, source: Source, spec: SignalSpec, codec: dict[str, Any]) -> dict[str, Any]:
    """Write the tables of a set whose `slices` are all finished, then its manifest, then drop the work folder. Returns the manifest.

    Memory: one sidecar, one row group of the table being written, 8 bytes per shard and patient in it, and 16 per distinct report.

    Raises DataError when no record was usable.
    """
    shards: list[dict[str, Any]] = []
    patients = array("Q")
    rejected: Counter[str] = Counter()
    flagged: Counter[str] = Counter()
    first_reject: list[str] = []

    def batches(rejects: TextIO, reports: ReportTable) -> Iterator[pa.RecordBatch]:
        """One pass over the sidecars, one in memory at a time: index rows as they are wanted, everything else collected along the way."""
        writer = csv.DictWriter(rejects, fieldnames=["key", "path", "reason", "detail"], lineterminator="\n")
        writer.writeheader()
        for number in range(slices):
            facts = read_sidecar(out, number)
            assert facts is not None, f"slice {number} is unfinished"
            writer.writerows(facts["rejects"])
            rejected.update(reject["reason"] for reject in facts["rejects"])
            first_reject.extend(reject["detail"] for reject in facts["rejects"][: 1 - len(first_reject)])
            if facts["shard"] is not None:
                patients.extend(_digest(patient) for patient in {row["patient"] for row in facts["rows"]})
                flagged.update(
                    flag for row in facts["rows"] for bit, flag in enumerate(FLAGS) if row["quality"] >> bit & 1
                )
                shards.append(facts["shard"])
                yield index_batch(facts["rows"], len(shards) - 1, reports)

    def write_both(rejects_path: Path) -> None:
        with rejects_path.open("w", newline="", encoding="utf-8") as rejects:
            commit_file(out / INDEX, lambda path: write_index(batches(rejects, reports), path))

    with ReportTable(temporary_path(out / WORK_FOLDER / REPORTS)) as reports:
        commit_file(out / REJECTS, write_both)
        if shards:
            commit_file(out / REPORTS, reports.write)
    if not shards:
        (out / INDEX).unlink()
        first = f"; the first: {first_reject[0]}" if first_reject else ""
        raise DataError(
            f"no usable record for {out}: rejected {dict(sorted(rejected.items()))}{first}",
            f"see {out / REJECTS}, correct the source, build again with overwrite",
        )
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": content_fingerprint(spec, codec, shards),
        "source": source.describe(),
        "spec": asdict(spec) | {"samples": spec.samples, "leads": list(STANDARD_LEADS), "unit": "mV"},
        "codec": {"name": codec["name"], "version": codec["version"]},
        "counts": {
            "records": sum(shard["records"] for shard in shards),
            "patients": _distinct(patients),
            "reports": len(reports),
            "rejected": dict(sorted(rejected.items())),
            "quality": {flag: flagged[flag] for flag in FLAGS if flagged[flag]},
        },
        "shards": shards,
        "tables": {name: sha256_of(out / name) for name in (INDEX, REPORTS)},
    }
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, default=str)
    commit_file(out / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
    shutil.rmtree(out / WORK_FOLDER)
    sync(out)
    return json.loads(text)


def _digest(patient: str) -> int:
    """8 bytes for any patient id. That two of a million patients share them, and count as one, has the odds of 1 in 37 million."""
    return int.from_bytes(hashlib.blake2b(patient.encode(), digest_size=8).digest())


def _distinct(digests: array[int]) -> int:
    values = np.frombuffer(digests, dtype=np.uint64)
    values.sort()
    return int(np.count_nonzero(values[1:] != values[:-1])) + min(values.size, 1)
