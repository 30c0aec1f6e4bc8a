"""Start and memory of a run on a large set: a fresh process opens an index of 800,000 records, takes its first batch,
and streams on.

The index is made of the rows of a real set, repeated under other keys and patients, so that every batch is read and
decoded from real shards.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from cardialign.data_shards.benchmarks.material import Material, Measurement
from cardialign.data_shards.benchmarks.process import measured_by, peak_memory
from cardialign.data_shards.benchmarks.table import Row
from cardialign.data_shards.build.index_rows import write_index
from cardialign.data_shards.files import sha256_of
from cardialign.data_shards.shard_set.layout import (
    INDEX,
    LEAST_BYTES,
    MANIFEST,
    REPORTS,
    content_fingerprint,
    shard_name,
)
from cardialign.data_shards.shard_set.shard_set import ShardSet

STEPS = 12
RECORDS_PER_PATIENT = 5

ROWS = (
    Row("index of 800,000 records: opening it to the first batch", "large_index_first_batch_seconds", "s", below=1.0,
        against={"index as one pandas table, shuffled": "large_index_pandas_seconds"}),
    Row("... the same in CPU seconds (what a busy machine cannot stretch)", "large_index_first_batch_cpu_seconds", "s"),
    Row("... memory of the process at its peak, imports included", "large_index_memory_peak_mb", "MB", below=500,
        against={"with the pandas table": "large_index_pandas_memory_mb"}),
)  # fmt: skip


def measure_start(material: Material) -> Measurement:
    def figures() -> dict[str, float]:
        large = repeated_set(material.shards, material.folder / "large", material.sizes.index_records)
        started = time.monotonic()
        found = measured_by(__name__, str(large), str(material.batch), str(material.seed))
        found["process_seconds"] = time.monotonic() - started
        if material.compare:
            found |= measured_by(__name__, str(large))
        return {
            "large_index_records": material.sizes.index_records,
            **{f"large_index_{name}": value for name, value in found.items()},
        }

    return Measurement(figures=figures, rows=ROWS)


def repeated_set(shards: ShardSet, folder: Path, records: int) -> Path:
    """A set of `records` records whose rows point into the shards of `shards`, again and again; a shard stands there
    under as many names as it takes that none has more records than its bytes can hold."""
    folder.mkdir()
    there = len(shards.shard_names)
    turns, rows = np.divmod(np.arange(records), len(shards))
    hold = np.array([shard["bytes"] // LEAST_BYTES for shard in shards.manifest["shards"]])
    fit = np.min(hold // np.maximum(np.bincount(shards.shard, minlength=there), 1))  # turns under one name
    numbers = shards.shard[rows] + there * (turns // max(int(fit), 1))
    index = shards.index.take(pa.array(rows))
    columns = {
        "key": pa.array([f"large-{i:08d}" for i in range(records)]),
        "patient": pa.array([f"p{i // RECORDS_PER_PATIENT}" for i in range(records)]),
        "shard": pa.array(numbers.astype(np.int32)),
    }
    for name, values in columns.items():
        index = index.set_column(index.schema.get_field_index(name), name, values)
    write_index(index.to_batches(), folder / INDEX)
    (folder / REPORTS).symlink_to(shards.path / REPORTS)
    for number in range(there):
        shards.read_payload(int(np.argmax(shards.shard == number)))  # a remote shard is fetched now
    named = []
    for number, count in enumerate(np.bincount(numbers, minlength=there).tolist()):
        shard = shards.manifest["shards"][number % there]
        named.append({**shard, "name": shard_name(number), "records": count})
        (folder / shard_name(number)).symlink_to((shards.path / shard["name"]).absolute())
    manifest = {
        **shards.manifest,
        "counts": {**shards.manifest["counts"], "records": records, "patients": -(-records // RECORDS_PER_PATIENT)},
        "tables": {**shards.manifest["tables"], INDEX: sha256_of(folder / INDEX)},
        "shards": named,
        "fingerprint": content_fingerprint(shards.spec, shards.manifest["codec"], named),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def start_and_stream(folder: Path, batch: int, seed: int) -> dict[str, float]:
    """Seconds from opening the set to its first batch, by the clock and of CPU, and the memory of this process before,
    then and at its peak, in MB."""
    from cardialign.data_shards.order.global_order import GlobalOrder
    from cardialign.data_shards.stream.stream import ReadAhead, ShardStream

    here = psutil.Process()
    before, started, started_cpu = here.memory_info().rss, time.monotonic(), time.process_time()
    shards = ShardSet.open(folder)
    order = GlobalOrder(shards.select().rows, shards.patients, batch, seed, shards.fingerprint)
    with ShardStream(shards, order, stop_step=STEPS, read_ahead=ReadAhead(threads=1)) as batches:
        next(batches)
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - started_cpu
        for _ in batches:
            pass
    now = here.memory_info().rss
    return {
        "first_batch_seconds": seconds,
        "first_batch_cpu_seconds": cpu_seconds,
        "memory_before_mb": before / 1e6,
        "memory_streaming_mb": now / 1e6,
        "memory_peak_mb": max(now, peak_memory()) / 1e6,  # the kernel's two counters differ by some pages
    }


def pandas_start(folder: Path) -> dict[str, float]:
    """The same up to the first batch of rows, as it is done without an index of plain columns: the table into pandas,
    then shuffled. No record is read."""
    import pandas as pd

    started = time.monotonic()
    frame = pd.read_parquet(folder / INDEX).sample(frac=1.0, random_state=0)
    frame.head(1)
    return {"pandas_seconds": time.monotonic() - started, "pandas_memory_mb": peak_memory() / 1e6}


if __name__ == "__main__":
    measured = (
        start_and_stream(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
        if len(sys.argv) > 2
        else pandas_start(Path(sys.argv[1]))
    )
    sys.stdout.write(json.dumps(measured) + "\n")
