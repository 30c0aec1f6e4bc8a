"""The measurement of a run's start: a made-up index that the real set, order and stream accept, and figures that mean
something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.benchmarks.order import RECORDS_PER_SHARD, make_large_set, measure_order
from cardialign.data_shards.checks.verify import verify
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.shard_set.shard_set import ShardSet


def test_the_made_up_index_is_a_set_of_that_many_records_and_a_third_as_many_patients(tmp_path: Path) -> None:
    shards = ShardSet.open(make_large_set(tmp_path / "set", 10_000))
    assert len(shards) == 10_000 and len(shards.shard_names) == -(-10_000 // RECORDS_PER_SHARD)
    assert np.unique(shards.patients).size == -(-10_000 // 3) == shards.manifest["counts"]["patients"]
    assert verify(shards.path, quick=True).problems == []
    assert shards.key(9_999) == "record-00009999" and int(shards.shard[9_999]) == 9_999 // RECORDS_PER_SHARD


@pytest.mark.slow
def test_figures_of_a_start_come_from_processes_of_their_own(tmp_path: Path) -> None:
    figures = measure_order(make_large_set(tmp_path / "set", 20_000), window=2)
    assert figures["records"] == 20_000
    assert figures["first_batch_cpu_s"] > 0 and figures["step_s"] > 0
    assert 0 < figures["peak_mb"] < 500 and 0 < figures["first_start_mb"] < 500
    assert 1 <= figures["shards_per_batch"] <= 2 * 2  # of a set of five


def test_a_process_that_fails_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"benchmarks.order failed: (.|\n)*is not a folder"):
        measure_order(tmp_path / "nothing")
