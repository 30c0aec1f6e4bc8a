"""What a step waits for its data, split into read, decode and queue, behind a consumer that is busy elsewhere (a GPU)
for a fixed time per batch."""

from __future__ import annotations

import time

import numpy as np

from cardialign.data_shards.benchmarks.material import Material, Measurement
from cardialign.data_shards.benchmarks.table import Row
from cardialign.data_shards.order.global_order import GlobalOrder
from cardialign.data_shards.stream.stream import ReadAhead, ShardStream

STEPS = 16
HEADROOM = 3.0
"""The made-up step takes this many times as long as one thread needs for a batch."""

ROWS = (
    Row("data wait: reading and checking a batch, in the background", "data_wait_read_ms", "ms"),
    Row("data wait: decoding a batch, in the background", "data_wait_decode_ms", "ms"),
    Row(
        "data wait: queue, for which a step stands still that takes as long as decoding three batches",
        "data_wait_queue_ms",
        "ms",
        lower_is_better=True,
        against={"without reading ahead": "data_wait_inline_ms"},
    ),
)


def measure_wait(material: Material) -> Measurement:
    shards, batch = material.shards, material.batch
    order = GlobalOrder(np.arange(len(shards)), shards.patients, batch, material.seed, shards.fingerprint)
    for epoch in range(1 + STEPS * batch // len(shards)):
        order.prepare(epoch)

    def waits(step_seconds: float) -> tuple[dict[str, float], tuple[float, str]]:
        """Mean seconds per step by kind, the first batch aside, and the slowest read."""
        total, slowest = {"read": 0.0, "decode": 0.0, "queue": 0.0}, (0.0, "")
        with ShardStream(shards, order, stop_step=1 + STEPS, read_ahead=ReadAhead(threads=1)) as batches:
            for each in batches:
                if each.step:
                    total = {kind: seconds + each.wait[kind] for kind, seconds in total.items()}
                    slowest = max(slowest, each.slowest)
                time.sleep(step_seconds)
        return {kind: seconds / STEPS for kind, seconds in total.items()}, slowest

    def figures() -> dict[str, float | str]:
        free, _ = waits(0.0)
        inline = free["read"] + free["decode"]
        hidden, slowest = waits(HEADROOM * inline)
        found = {f"data_wait_{kind}_ms": 1000 * seconds for kind, seconds in hidden.items()}
        return {
            **found,
            "data_wait_inline_ms": 1000 * inline,
            "data_wait_share": hidden["queue"] / (HEADROOM * inline + hidden["queue"]),
            "data_wait_batch": batch,
            "data_wait_slowest_read_ms": 1000 * slowest[0],
            "data_wait_slowest_shard": slowest[1],
        }

    return Measurement(figures=figures, rows=ROWS)
