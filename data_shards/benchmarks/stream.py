"""The stream: local shards -> shuffled float batches, one decoding thread."""

from __future__ import annotations

import numpy as np

from cardialign.data_shards.benchmarks.material import Material, Measurement, rate
from cardialign.data_shards.benchmarks.table import Row
from cardialign.data_shards.order.global_order import GlobalOrder
from cardialign.data_shards.stream.stream import ReadAhead, ShardStream

ROWS = (
    Row(
        "shards -> shuffled float batches, every payload checked",
        rate("stream"),
        "records/s",
        at_least=4000,
        against={
            "wfdb.rdsamp": rate("wfdb_rdsamp"),
            "one .mat per record": rate("mat_float32"),
            "webdataset over .npy": rate("webdataset_npy"),
        },
    ),
    Row(
        "bytes read per record",
        "bytes_per_record",
        "B",
        lower_is_better=True,
        against={
            "wfdb.rdsamp": "wfdb_rdsamp_bytes_per_record",
            "one .mat per record": "mat_float32_bytes_per_record",
            "webdataset over .npy": "webdataset_npy_bytes_per_record",
        },
    ),
)


def measure_stream(material: Material) -> Measurement:
    shards, batch = material.shards, material.batch
    order = GlobalOrder(np.arange(len(shards)), shards.patients, batch, material.seed, shards.fingerprint)
    order.prepare(0)  # once per epoch, and none of the stream's business
    steps = max(1, 4 * len(material.records) // batch)  # long enough that starting and ending threads does not count

    def stream() -> int:
        with ShardStream(shards, order, stop_step=steps, read_ahead=ReadAhead(threads=1)) as batches:
            return sum(each.rows.size for each in batches)

    return Measurement({"stream": stream}, rows=ROWS)
