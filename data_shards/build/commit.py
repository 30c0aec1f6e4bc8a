"""The last step of a build: finished shards and their sidecars -> index, report table, list of rejects, and last of all
the manifest."""

from __future__ import annotations

import csv
import hashlib
import logging
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa

from cardialign.data_shards.build.index_rows import index_batch, write_index
from cardialign.data_shards.build.report_table import ReportTable
from cardialign.data_shards.build.shard_task import UNDECLARED, read_sidecar, sidecar_path
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.files import commit_file, sha256_of, sync, temporary_path, write_json
from cardialign.data_shards.reading.walk import NotSeen
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
from cardialign.data_shards.shown import cell
from cardialign.data_shards.signal.quality import FLAGS
from cardialign.data_shards.sources.base import Source, Walked
from cardialign.data_shards.sources.shared.matches import EXAMPLES

log = logging.getLogger(__name__)

MOST_FAILED = 0.5
"""Share of the records on which a reader may fail in ways that it does not declare; with more it is the reader, or the
storage, that is at fault, and no set comes of it."""


def commit_set(out: Path, slices: int, source: Source, spec: SignalSpec, codec: dict[str, Any]) -> dict[str, Any]:
    """Write the tables of a set whose `slices` are all finished, then its manifest, then drop the work folder.

    Returns the manifest.

    Memory: one sidecar, one row group of the table being written, 8 bytes per shard and patient in it, and 16 per
    distinct report.

    Raises DataError when no record was usable, and when the reader failed on more than MOST_FAILED of them: then the
    shards concerned are built again by the next build.
    """
    found = _Found(source.not_seen() if isinstance(source, Walked) else ())
    with ReportTable(temporary_path(out / WORK_FOLDER / REPORTS)) as reports:

        def write_both(rejects_path: Path) -> None:
            with rejects_path.open("w", newline="", encoding="utf-8") as rejects:
                batches = found.index_batches(out, slices, rejects, reports)
                commit_file(out / INDEX, lambda path: write_index(batches, path))

        commit_file(out / REJECTS, write_both)
        found.check_failures(out)
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
        "tables": {name: sha256_of(out / name) for name in (INDEX, REPORTS, REJECTS)},
    }
    found.tell_failures(source.name)
    found.tell_channels(source.name)
    write_json(out / MANIFEST, manifest, indent=1, sort_keys=True, ensure_ascii=False, default=str)
    shutil.rmtree(out / WORK_FOLDER)
    sync(out)
    return read_manifest(out)


class _Found:
    """What the sidecars of a set say, collected along one pass over them."""

    def __init__(self, not_seen: Sequence[NotSeen]) -> None:
        self._not_seen = not_seen
        self._failures: dict[str, str] = {}
        self._failing: list[int] = []
        self.shards: list[dict[str, Any]] = []
        self.rejected: Counter[str] = Counter()
        self.first_reject: str | None = None
        self.first_failure = ""
        self._flagged: Counter[str] = Counter()
        self._channels: Counter[str] = Counter()
        self._patients = array("Q")

    def index_batches(self, out: Path, slices: int, rejects: TextIO, reports: ReportTable) -> Iterator[pa.RecordBatch]:
        """Index rows as they are wanted, one sidecar in memory at a time; along the way rejects are written and reports
        added."""
        writer = csv.DictWriter(rejects, fieldnames=["key", "path", "reason", "detail"], lineterminator="\n")
        writer.writeheader()
        for number in range(slices):
            facts = read_sidecar(out, number)
            if facts is None:
                raise DataError(
                    f"{sidecar_path(out, number)}, made a moment ago, cannot be read", "run the same build again"
                )
            writer.writerows(map(_safe_cells, facts["rejects"]))
            for kind, traceback in facts.get("failures", {}).items():
                self._failures.setdefault(kind, traceback)
            self._channels.update(facts.get("channels", {}))
            if any(reject["reason"] == UNDECLARED for reject in facts["rejects"]):
                self._failing.append(number)
            for reject in facts["rejects"]:
                self.rejected[reject["reason"]] += 1
                if reject["reason"] == UNDECLARED:
                    self.first_failure = self.first_failure or reject["detail"]
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
        for each in self._not_seen:  # nobody knows how many records it holds
            writer.writerow(_safe_cells({"key": "", "path": each.path, "reason": each.reason, "detail": each.detail}))
            self.rejected[each.reason] += 1

    def check_failures(self, out: Path) -> None:
        failed = self.rejected[UNDECLARED]
        records = sum(shard["records"] for shard in self.shards)
        read = records + sum(self.rejected.values()) - len(self._not_seen)
        if failed <= MOST_FAILED * read:
            return
        self.tell_failures(str(out))
        for number in self._failing:
            sidecar_path(out, number).unlink()
        (out / INDEX).unlink()
        raise DataError(
            f"{out}: the reader failed on {failed} of {read} records, most often or first as "
            f"{next(iter(self._failures), 'not known')}: {self.first_failure}",
            f"see {out / REJECTS}; check that the files may be read and that their storage is well, then run the same "
            "build again: it reads those records anew. A fault of the reader shows with --debug",
        )

    def tell_failures(self, where: str) -> None:
        """Faults of a reader stay visible: one warning of each kind, its traceback with --debug."""
        for kind, traceback in self._failures.items():
            log.warning(
                "records turned away as %s by what the reader does not declare source=%s first=%s of=%d",
                UNDECLARED,
                where,
                kind,
                self.rejected[UNDECLARED],
            )
            log.info("%s", traceback)

    def tell_channels(self, source: str) -> None:
        if self._channels:
            some = ", ".join(f"{name!r} x {times}" for name, times in self._channels.most_common(EXAMPLES))
            log.warning(
                "records lack leads and have channels that are none of them source=%s names=%d, left out: %s; where "
                "one is a standard lead under another name, correct the header, or set the option lead_names",
                source,
                len(self._channels),
                some,
            )

    def counts(self, reports: ReportTable) -> dict[str, Any]:
        """The counts of the manifest, after the pass."""
        return {
            "records": sum(shard["records"] for shard in self.shards),
            "patients": _distinct(self._patients),
            "reports": len(reports),
            "rejected": dict(sorted(self.rejected.items())),
            "quality": {flag: self._flagged[flag] for flag in FLAGS if self._flagged[flag]},
        }


def _safe_cells(reject: dict[str, str]) -> dict[str, str]:
    """Cells that neither a terminal nor a spreadsheet takes for a command: names come from other people's folders."""
    return {name: cell(text) for name, text in reject.items()}


def _digest(patient: str) -> int:
    """8 bytes for any patient id.

    That two of a million patients share them, and count as one, has the odds of 1 in 37 million.
    """
    return int.from_bytes(hashlib.blake2b(patient.encode(), digest_size=8).digest())


def _distinct(digests: array[int]) -> int:
    values = np.frombuffer(digests, dtype=np.uint64)
    values.sort()
    return int(np.count_nonzero(values[1:] != values[:-1])) + min(values.size, 1)
