"""The last step of a build: finished shards and their sidecars -> index, report table, list of rejects, and last of all the manifest."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_shards.build_shard import WORK_FOLDER, read_sidecar
from data_shards.errors import DataError
from data_shards.index import INDEX_SCHEMA, ReportTable, index_batch, write_table
from data_shards.quality import FLAGS
from data_shards.record import STANDARD_LEADS, SignalSpec
from data_shards.shard_writer import commit_file, file_sha256, sync_folder
from data_shards.sources.base import Source

SCHEMA_VERSION = 1
MANIFEST, INDEX, REPORTS, REJECTS = "manifest.json", "index.parquet", "reports.parquet", "rejects.csv"


def commit_set(out: Path, slices: int, source: Source, spec: SignalSpec, codec: dict[str, Any]) -> dict[str, Any]:
    """Write the tables of a set whose `slices` are all finished, then its manifest, then drop the work folder. Returns the manifest.

    Raises DataError when no record was usable.
    """
    shards: list[dict[str, Any]] = []
    batches: list[pa.RecordBatch] = []
    rejects: list[dict[str, str]] = []
    reports = ReportTable()
    for number in range(slices):
        facts = read_sidecar(out, number)
        assert facts is not None, f"slice {number} is unfinished"
        rejects += facts["rejects"]
        if facts["shard"] is not None:
            batches.append(index_batch(facts["rows"], len(shards), reports))
            shards.append(facts["shard"])
    rejected = dict(sorted(Counter(reject["reason"] for reject in rejects).items()))
    commit_file(out / REJECTS, lambda path: _write_rejects(path, rejects))
    if not shards:
        first = f"; the first: {rejects[0]['detail']}" if rejects else ""
        raise DataError(
            f"no usable record for {out}: rejected {rejected}{first}",
            f"see {out / REJECTS}, correct the source, build again with overwrite",
        )
    index = pa.Table.from_batches(batches, schema=INDEX_SCHEMA)
    commit_file(out / INDEX, lambda path: write_table(index, path))
    commit_file(out / REPORTS, lambda path: write_table(reports.table(), path))
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": content_fingerprint(spec, codec, shards),
        "source": source.describe(),
        "spec": asdict(spec) | {"samples": spec.samples, "leads": list(STANDARD_LEADS), "unit": "mV"},
        "codec": {"name": codec["name"], "version": codec["version"]},
        "counts": {
            "records": index.num_rows,
            "patients": len(index.column("patient").unique()),
            "reports": len(reports),
            "rejected": rejected,
            "quality": _records_by_flag(index),
        },
        "shards": shards,
        "tables": {name: file_sha256(out / name) for name in (INDEX, REPORTS)},
    }
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, default=str)
    commit_file(out / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
    shutil.rmtree(out / WORK_FOLDER)
    sync_folder(out)
    return json.loads(text)


def _records_by_flag(index: pa.Table) -> dict[str, int]:
    """Quality flag -> records that carry it, for the flags that occur."""
    bits = index.column("quality").to_numpy()
    counts = {flag: int(np.count_nonzero(bits >> np.uint32(i) & 1)) for i, flag in enumerate(FLAGS)}
    return {flag: count for flag, count in counts.items() if count}


def content_fingerprint(spec: SignalSpec, codec: dict[str, Any], shards: Sequence[dict[str, Any]]) -> str:
    """sha256 over what the set holds: spec, codec and the content of every shard in order. Independent of folders, names and dates."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "spec": asdict(spec),
        "codec": [codec["name"], codec["version"]],
        "shards": [[shard["records"], shard["sha256"]] for shard in shards],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_rejects(path: Path, rejects: Sequence[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=["key", "path", "reason", "detail"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rejects)
