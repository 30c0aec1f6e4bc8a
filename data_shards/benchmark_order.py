"""What the order and the index cost at scale, on a made-up index: no signal is read, memory and time are those of a run's start.

Every measurement runs in a process of its own, so that nothing measured before it is counted; memory is what that process adds to a bare interpreter
with the same imports, at its peak, without the file-backed pages of memory-mapped columns, which the kernel drops when it needs the room.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_shards.build import build_shards
from data_shards.commit_set import INDEX, MANIFEST
from data_shards.index import INDEX_SCHEMA
from data_shards.order import GlobalOrder
from data_shards.record import EcgRecord, SignalSpec
from data_shards.shard_set import ShardSet
from data_shards.shard_writer import file_sha256
from data_shards.sources.base import Entry
from data_shards.stream import ShardStream
from data_shards.window_order import WindowOrder

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
        return EcgRecord(entry.key, counts, np.full(12, 200, np.float32), 500.0, statements=("Sinus rhythm",), patient="p")

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


def make_large_set(folder: Path, records: int) -> Path:
    """A set whose index has `records` rows, all of which name the one record that is really there; about three records per patient."""
    build_shards(_OneRecord(), folder, spec=SignalSpec(500, 1), workers=1)
    (row,) = pq.read_table(folder / INDEX).to_pylist()
    with pq.ParquetWriter(folder / INDEX, INDEX_SCHEMA, compression="zstd") as writer:
        for start in range(0, records, _PART):
            numbers = np.arange(start, min(start + _PART, records))
            columns = {name: pa.repeat(pa.scalar(row[name], INDEX_SCHEMA.field(name).type), numbers.size) for name in INDEX_SCHEMA.names}
            columns["key"] = pa.array([f"record-{number:08d}" for number in numbers.tolist()])
            columns["patient"] = pa.array([f"{number * 2654435761 % 2**32:08x}" for number in (numbers // 3).tolist()])
            columns["shard"] = pa.array((numbers // RECORDS_PER_SHARD).astype(np.int32))
            writer.write_table(pa.table(columns, schema=INDEX_SCHEMA))
    manifest = json.loads((folder / MANIFEST).read_text())
    shards = -(-records // RECORDS_PER_SHARD)
    manifest["counts"]["records"], manifest["tables"][INDEX] = records, file_sha256(folder / INDEX)
    manifest["shards"] = manifest["shards"] * shards
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def measure_order(records: int = 800_000, window: int | None = None, mapped: bool = False) -> dict[str, float]:
    """Figures of a run's start on an index of `records` rows: seconds to the first batch (set opened, order made, records decoded), seconds per
    further step, peak MiB. window: shards per shuffle window, None = whole set. mapped: columns laid down by an earlier run are there already."""
    with tempfile.TemporaryDirectory(prefix="cardialign-bench-") as name:
        folder = make_large_set(Path(name) / "set", records)
        words = [sys.executable, "-m", "data_shards.benchmark_order", str(folder), str(window or 0)]
        environment = {"TMPDIR": name, "PYTHONPATH": str(Path(__file__).parent.parent)}
        for _ in range(1 + mapped):
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)


def measure_start(folder: Path, window: int | None, steps: int = 64) -> dict[str, float]:
    """The same in this process, for a set that is there."""
    peak = _PeakMemory()
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
        with ShardStream(shards, order, stop_step=1 + steps, threads=1) as stream:
            next(stream)
            first, first_cpu = time.perf_counter() - started, time.process_time() - worked
            for _ in stream:
                pass
        seconds = time.perf_counter() - started - first
    return {"records": len(shards), "first_batch_s": first, "first_batch_cpu_s": first_cpu, "step_s": seconds / steps, "peak_mib": peak.mib}


class _PeakMemory:
    """Largest growth of this process's own (anonymous) memory inside the `with`, sampled."""

    def __enter__(self) -> _PeakMemory:
        self._before, self.mib, self._ended = _own_memory(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._ended.wait(0.002):
            self.mib = max(self.mib, (_own_memory() - self._before) / 2**20)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.mib = max(self.mib, (_own_memory() - self._before) / 2**20)


def _own_memory() -> int:
    """Bytes of anonymous memory (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))


def measure_scale() -> dict[str, float]:
    """The figures that `cardialign bench data` prints: first batch on 800,000 records, memory and steps on 10 million."""
    figures: dict[str, float] = {}
    for name, records, window in (("800k", 800_000, None), ("10m_window", 10_000_000, 16), ("10m_whole", 10_000_000, None)):
        measured = measure_order(records, window)
        figures |= {f"order_{name}_{key}": measured[key] for key in ("first_batch_s", "first_batch_cpu_s", "step_s", "peak_mib")}
    return figures


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure_start(Path(sys.argv[1]), int(sys.argv[2]) or None)))
