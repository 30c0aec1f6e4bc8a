"""What the order and the index cost at scale, on a made-up index: no signal is read, memory and time are those of a
run's start.

Every measurement runs in a process of its own, so that nothing measured before it is counted; memory is what that
process adds to a bare interpreter with the same imports, at its peak (`process.PeakMemory`).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cardialign.data_shards.benchmarks.material import Material, Measurement
from cardialign.data_shards.benchmarks.process import PeakMemory, measured_by
from cardialign.data_shards.benchmarks.table import Row
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.build.index_rows import write_index
from cardialign.data_shards.files import sha256_of
from cardialign.data_shards.order.global_order import GlobalOrder
from cardialign.data_shards.order.window import WindowOrder
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.layout import (
    INDEX,
    INDEX_SCHEMA,
    LEAST_BYTES,
    MANIFEST,
    content_fingerprint,
    shard_name,
    spec_of,
)
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.stream.stream import ReadAhead, ShardStream

RECORDS_PER_SHARD = 4096
_BATCH = 256
_PART = 1 << 18


class _OneRecord:
    """A source of one short record: every row of the made-up index points at its payload."""

    name = "one"
    root = Path(".")
    label_sets: tuple[str, ...] = ()

    @classmethod
    def options(cls) -> dict[str, str]:
        return {}

    def entries(self) -> list[Entry]:
        return [Entry("one", "one", {})]

    def read(self, entry: Entry) -> EcgRecord:
        counts = (np.arange(12 * 500).reshape(12, 500) % 97).astype(np.int16)
        return EcgRecord(
            entry.key, counts, np.full(12, 200, np.float32), 500.0, statements=("Sinus rhythm",), patient="p"
        )

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


def make_large_set(folder: Path, records: int) -> Path:
    """A set whose index has `records` rows, all of which name the one record that is really there; about three records
    per patient. Every shard is that record's, with a hole behind it that as many records would fill."""
    build_shards(_OneRecord(), folder, SetPlan(SignalSpec(500, 1)), workers=1)
    (row,) = pq.read_table(folder / INDEX).to_pylist()

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, records, _PART):
            numbers = np.arange(start, min(start + _PART, records))
            columns = {
                name: pa.repeat(pa.scalar(row[name], INDEX_SCHEMA.field(name).type), numbers.size)
                for name in INDEX_SCHEMA.names
            }
            columns["key"] = pa.array([f"record-{number:08d}" for number in numbers.tolist()])
            columns["patient"] = pa.array([f"{number * 2654435761 % 2**32:08x}" for number in (numbers // 3).tolist()])
            columns["shard"] = pa.array((numbers // RECORDS_PER_SHARD).astype(np.int32))
            yield pa.record_batch(columns, schema=INDEX_SCHEMA)

    write_index(batches(), folder / INDEX)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["counts"] |= {"records": records, "patients": -(-records // 3)}
    manifest["tables"][INDEX] = sha256_of(folder / INDEX)
    (shard,) = manifest["shards"]
    file = folder / shard["name"]
    size = shard["bytes"] + RECORDS_PER_SHARD * LEAST_BYTES
    with file.open("r+b") as opened:
        opened.truncate(size)
    shard |= {"bytes": size, "sha256": sha256_of(file)}
    starts = range(0, records, RECORDS_PER_SHARD)
    manifest["shards"] = [
        {**shard, "name": shard_name(number), "records": min(RECORDS_PER_SHARD, records - start)}
        for number, start in enumerate(starts)
    ]
    for number in range(1, len(starts)):
        (folder / shard_name(number)).symlink_to(file.name)
    manifest["fingerprint"] = content_fingerprint(spec_of(manifest), manifest["codec"], manifest["shards"])
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def measure_order(folder: Path, window: int | None = None) -> dict[str, float]:
    """Figures of two starts of a run on a set, each in a process of its own: seconds to the first batch (set opened,
    order made, records decoded), seconds per further step, peak MB, most shards open at once. window: shards per
    shuffle window, None = whole set.

    Without prefix: the later start, which finds the columns of a large index laid down; `first_start_mb`: the peak of
    the start that lays them down.
    """
    with tempfile.TemporaryDirectory(prefix="cardialign-bench-") as name:
        starts = [measured_by(__name__, str(folder), str(window or 0), TMPDIR=name) for _ in range(2)]
    return {**starts[1], "first_start_mb": starts[0]["peak_mb"], "first_start_cpu_s": starts[0]["first_batch_cpu_s"]}


def measure_start(folder: Path, window: int | None, steps: int = 64) -> dict[str, float]:
    """The same in this process, for a set that is there."""
    peak = PeakMemory()
    with peak:
        started, worked = time.perf_counter(), time.process_time()
        shards = ShardSet.open(folder)
        chosen = shards.select(require_report=True)
        patients = shards.patients[chosen.rows]
        order: GlobalOrder | WindowOrder
        if window is None:
            order = GlobalOrder(chosen.rows, patients, _BATCH, 0, chosen.fingerprint)
        else:
            order = WindowOrder(chosen.rows, shards.shard[chosen.rows], patients, _BATCH, 0, chosen.fingerprint, window)
        del patients
        with ShardStream(shards, order, stop_step=1 + steps, read_ahead=ReadAhead(threads=1)) as stream:
            next(stream)
            first, first_cpu = time.perf_counter() - started, time.process_time() - worked
            for _ in stream:
                pass
        seconds = time.perf_counter() - started - first
    spread = [np.unique(shards.shard[order.batch(step)]).size for step in range(steps)]
    return {
        "records": len(shards),
        "first_batch_s": first,
        "first_batch_cpu_s": first_cpu,
        "step_s": seconds / steps,
        "peak_mb": peak.mib * 2**20 / 1e6,
        "shards_per_batch": max(spread),
    }


WINDOW = 16
"""Shards per shuffle window, for object storage."""
CASES: tuple[tuple[str, int, int | None, str], ...] = (
    ("800k", 800_000, None, "800,000 records, whole shuffle"),
    ("10m_window", 10_000_000, WINDOW, f"10 million records, windows of {WINDOW} shards"),
    ("10m_whole", 10_000_000, None, "10 million records, whole shuffle"),
)


def _rows() -> Iterator[Row]:
    for name, _, _, what in CASES:
        yield Row(
            f"{what}: memory beside the imports, first start on a node", f"order_{name}_first_start_mb", "MB", below=500
        )
        yield Row(
            "... later starts, columns laid down",
            f"order_{name}_peak_mb",
            "MB",
            below=500,
            against={"first start": f"order_{name}_first_start_mb"},
        )
        yield Row("... CPU to the first batch", f"order_{name}_first_batch_cpu_s", "s", lower_is_better=True)
    in_all = 10_000_000 // RECORDS_PER_SHARD
    yield Row(
        f"shards that a batch is read from, of {in_all:,}, in windows (at most 2 x {WINDOW})",
        "order_10m_window_shards_per_batch",
        "shards",
        below=2 * WINDOW + 1,
        against={"whole shuffle": "order_10m_whole_shards_per_batch"},
    )


def measure_ten_million(material: Material) -> Measurement:
    """Order and memory on made-up indexes of 800,000 and 10 million records; the material plays no part."""

    def figures() -> dict[str, float]:
        found: dict[str, float] = {}
        folders: dict[int, Path] = {}
        for name, records, window, _ in CASES:
            if records not in folders:
                folders[records] = make_large_set(material.folder / f"made-up-{records}", records)
            found |= {
                f"order_{name}_{key}": value
                for key, value in measure_order(folders[records], window).items()
                if key != "records"
            }
        return found

    return Measurement(figures=figures, rows=tuple(_rows()))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure_start(Path(sys.argv[1]), int(sys.argv[2]) or None)))
