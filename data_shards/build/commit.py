"""The last step of a build: finished shards and their sidecars -> index, report table, list of rejects, and last of all
the manifest."""

from __future__ import annotations

import csv
import hashlib
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
from cardialign.data_shards.files import commit_file, sha256_of, sync, temporary_path, write_json
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.shard_set.layout import (
    INDEX,
    MANIFEST,
    REJECTS,
    REPORTS,
    SCHEMA_VERSION,
    WORK_FOLDER,
    content_fingerprint,
    read_manifest,
)
from cardialign.data_shards.signal.quality import FLAGS
from cardialign.data_shards.sources.base import Source


def commit_set(out: Path, slices: int, source: Source, spec: SignalSpec, codec: dict[str, Any]) -> dict[str, Any]:
    """Write the tables of a set whose `slices` are all finished, then its manifest, then drop the work folder.

    Returns the manifest.

    Memory: one sidecar, one row group of the table being written, 8 bytes per shard and patient in it, and 16 per
    distinct report.

    Raises DataError when no record was usable.
    """
    found = _Found()
    with ReportTable(temporary_path(out / WORK_FOLDER / REPORTS)) as reports:

        def write_both(rejects_path: Path) -> None:
            with rejects_path.open("w", newline="", encoding="utf-8") as rejects:
                batches = found.index_batches(out, slices, rejects, reports)
                commit_file(out / INDEX, lambda path: write_index(batches, path))

        commit_file(out / REJECTS, write_both)
        if found.shards:
            commit_file(out / REPORTS, reports.write)
    if not found.shards:
        (out / INDEX).unlink()
        first = f"; the first: {found.first_reject}" if found.first_reject is not None else ""
        raise DataError(
            f"no usable record for {out}: rejected {dict(sorted(found.rejected.items()))}{first}",
            f"see {out / REJECTS}, correct the source, build again with overwrite",
        )
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": content_fingerprint(spec, codec, found.shards),
        "source": source.describe(),
        "spec": asdict(spec) | {"samples": spec.samples, "leads": list(STANDARD_LEADS), "unit": "mV"},
        "codec": {"name": codec["name"], "version": codec["version"]},
        "counts": found.counts(reports),
        "shards": found.shards,
        "tables": {name: sha256_of(out / name) for name in (INDEX, REPORTS)},
    }
    write_json(out / MANIFEST, manifest, indent=1, sort_keys=True, ensure_ascii=False, default=str)
    shutil.rmtree(out / WORK_FOLDER)
    sync(out)
    return read_manifest(out)


class _Found:
    """What the sidecars of a set say, collected along one pass over them."""

    def __init__(self) -> None:
        self.shards: list[dict[str, Any]] = []
        self.rejected: Counter[str] = Counter()
        self.first_reject: str | None = None
        self._flagged: Counter[str] = Counter()
        self._patients = array("Q")

    def index_batches(self, out: Path, slices: int, rejects: TextIO, reports: ReportTable) -> Iterator[pa.RecordBatch]:
        """Index rows as they are wanted, one sidecar in memory at a time; along the way rejects are written and reports
        added."""
        writer = csv.DictWriter(rejects, fieldnames=["key", "path", "reason", "detail"], lineterminator="\n")
        writer.writeheader()
        for number in range(slices):
            facts = read_sidecar(out, number)
            assert facts is not None, f"slice {number} is unfinished"
            writer.writerows(facts["rejects"])
            for reject in facts["rejects"]:
                self.rejected[reject["reason"]] += 1
                if self.first_reject is None:
                    self.first_reject = reject["detail"]
            if facts["shard"] is not None:
                rows = facts["rows"]
                self._patients.extend(_digest(patient) for patient in {row["patient"] for row in rows})
                self._flagged.update(
                    flag for row in rows for bit, flag in enumerate(FLAGS) if row["quality"] >> bit & 1
                )
                self.shards.append(facts["shard"])
                yield index_batch(rows, len(self.shards) - 1, reports)

    def counts(self, reports: ReportTable) -> dict[str, Any]:
        """The counts of the manifest, after the pass."""
        return {
            "records": sum(shard["records"] for shard in self.shards),
            "patients": _distinct(self._patients),
            "reports": len(reports),
            "rejected": dict(sorted(self.rejected.items())),
            "quality": {flag: self._flagged[flag] for flag in FLAGS if self._flagged[flag]},
        }


def _digest(patient: str) -> int:
    """8 bytes for any patient id.

    That two of a million patients share them, and count as one, has the odds of 1 in 37 million.
    """
    return int.from_bytes(hashlib.blake2b(patient.encode(), digest_size=8).digest())


def _distinct(digests: array[int]) -> int:
    values = np.frombuffer(digests, dtype=np.uint64)
    values.sort()
    return int(np.count_nonzero(values[1:] != values[:-1])) + min(values.size, 1)
