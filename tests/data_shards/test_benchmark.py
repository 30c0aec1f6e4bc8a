"""The benchmark measures the real parts on the same records. No figure is asserted to be fast: machines differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_shards.benchmark import measure_data
from data_shards.errors import DataError
from data_shards.shard_set import ShardSet

SPEEDS = ("encode", "decode", "stream", "wfdb_rdsamp", "webdataset_npy")


def test_every_figure_is_there_and_follows_from_the_records(small_set: ShardSet) -> None:
    figures = measure_data(small_set, records=24, rounds=1, batch=8)
    assert figures["records"] == 24 and figures["samples"] == 500
    assert figures["compression_ratio"] == pytest.approx(12 * 500 * 2 / figures["bytes_per_record"])
    assert all(figures[f"{name}_records_per_s_per_core"] > 0 for name in SPEEDS)
    rate = {name: figures[f"{name}_records_per_s_per_core"] for name in SPEEDS}
    assert figures["stream_times_wfdb_rdsamp"] == pytest.approx(rate["stream"] / rate["wfdb_rdsamp"])


def test_a_folder_of_wfdb_records_is_measured_as_well(real_data: Path) -> None:
    figures = measure_data(wfdb_folder=real_data / "ptb-xl" / "records500", records=32, rounds=1, compare=False)
    assert figures["records"] == 32 and figures["compression_ratio"] > 4.5
    assert "wfdb_rdsamp_records_per_s_per_core" not in figures


def test_without_a_set_a_virtual_cohort_is_measured() -> None:
    figures = measure_data(records=12, rounds=1, batch=4, compare=False)
    assert figures["records"] == 12 and figures["samples"] == 5000 and figures["compression_ratio"] > 4


def test_nothing_to_measure_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no WFDB record to measure"):
        measure_data(wfdb_folder=tmp_path)
