"""The measurement of a run's start: a made-up index that the real set, order and stream accept, and figures that mean something."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_shards.benchmark_order import RECORDS_PER_SHARD, make_large_set, measure_order
from data_shards.shard_set import ShardSet


def test_the_made_up_index_is_a_set_of_that_many_records_and_a_third_as_many_patients(tmp_path: Path) -> None:
    shards = ShardSet.open(make_large_set(tmp_path / "set", 10_000))
    assert len(shards) == 10_000 and len(shards.shard_names) == -(-10_000 // RECORDS_PER_SHARD)
    assert np.unique(shards.patients).size == -(-10_000 // 3)
    assert shards.key(9_999) == "record-00009999" and int(shards.shard[9_999]) == 9_999 // RECORDS_PER_SHARD


def test_figures_of_a_start_come_from_a_process_of_its_own() -> None:
    figures = measure_order(20_000, window=2)
    assert figures["records"] == 20_000
    assert figures["first_batch_cpu_s"] > 0 and figures["step_s"] > 0 and 0 < figures["peak_mib"] < 500
