"""The stream: local shards -> shuffled float batches, one decoding thread."""

from __future__ import annotations

import numpy as np

from data_shards.benchmark_material import Material, Measurement
from data_shards.order import GlobalOrder
from data_shards.stream import ShardStream


def measure_stream(material: Material) -> Measurement:
    shards, batch = material.shards, material.batch
    order = GlobalOrder(np.arange(len(shards)), shards.patients, batch, material.seed, shards.fingerprint)
    order.epoch(0)  # once per epoch, and none of the stream's business
    steps = max(1, 4 * len(material.records) // batch)  # long enough that starting and ending threads does not count

    def stream() -> int:
        with ShardStream(shards, order, stop_step=steps, threads=1) as batches:
            return sum(each.rows.size for each in batches)

    return Measurement({"stream": stream})
