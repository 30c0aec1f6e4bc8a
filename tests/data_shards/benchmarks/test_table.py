"""The benchmark measures the real parts on the same records. No figure is asserted to be fast: machines differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.benchmarks.build import measure_build
from cardialign.data_shards.benchmarks.codec import at_resolution, measure_codec
from cardialign.data_shards.benchmarks.figures import measure_data
from cardialign.data_shards.benchmarks.material import Sizes
from cardialign.data_shards.benchmarks.opening import repeated_set
from cardialign.data_shards.checks.verify import verify
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.shard_set.shard_set import ShardSet

OTHERS = ("wfdb_rdsamp", "mat_float32", "webdataset_npy")
SPEEDS = ("encode", "decode", "zlib_encode", "zlib_decode", "build", "build_by_hand", "stream", *OTHERS)
CHEAP = (measure_codec, measure_build)
SMALL = Sizes(batch=8, index_records=3000, reports=1500, distant_reports=3000)


@pytest.mark.slow
def test_every_figure_is_there_and_follows_from_the_records(small_set: ShardSet) -> None:
    figures = measure_data(small_set, records=24, rounds=1, sizes=SMALL)
    assert figures["records"] == 24 and figures["samples"] == 500
    assert figures["compression_ratio"] == pytest.approx(12 * 500 * 2 / figures["bytes_per_record"])
    assert all(figures[f"{name}_records_per_s_per_core"] > 0 for name in SPEEDS)
    rate = {name: figures[f"{name}_records_per_s_per_core"] for name in SPEEDS}
    for name in OTHERS:
        assert figures[f"stream_times_{name}"] == pytest.approx(rate["stream"] / rate[name])
    assert (
        figures["mat_float32_bytes_per_record"] > 12 * 500 * 4 > figures["wfdb_rdsamp_bytes_per_record"] > 12 * 500 * 2
    )
    assert figures["compression_ratio_5uV"] == figures["compression_ratio"] > figures["compression_ratio_1uV"] > 1
    assert (
        figures["large_index_records"] == 3000
        and 0 < figures["large_index_first_batch_seconds"] < figures["large_index_process_seconds"]
    )
    assert figures["large_index_pandas_seconds"] > 0 and figures["large_index_pandas_memory_mb"] > 0
    assert (
        figures["data_wait_inline_ms"] > 0 and 0 <= figures["data_wait_share"] < 1 and figures["data_wait_batch"] == 8
    )
    assert figures["data_wait_slowest_shard"] in small_set.shard_names
    assert (
        figures["distant_reports"] == 3000
        and figures["distant_matrix_mb"] == 36
        and figures["distant_core_minutes"] > 0
    )
    shown = {row["figure"]: row for row in figures["table"]}
    assert shown["stream_records_per_s_per_core"]["ratios"]["wfdb.rdsamp"] == figures["stream_times_wfdb_rdsamp"]
    assert shown["large_index_first_batch_seconds"]["target"] == "< 1" and len(shown) == len(figures["table"]) >= 25
    minutes = figures["mimic_iv_ecg_minutes_on_32_cores"]
    assert minutes * 60 * 32 * rate["build"] == pytest.approx(800_035)
    assert (
        0
        < figures["large_index_memory_before_mb"]
        < figures["large_index_memory_streaming_mb"]
        <= figures["large_index_memory_peak_mb"]
    )


def test_a_large_index_points_into_real_shards_under_keys_and_patients_of_its_own(
    small_set: ShardSet, tmp_path: Path
) -> None:
    large = ShardSet.open(repeated_set(small_set, tmp_path / "large", 1000))
    assert (
        len(large) == 1000
        and len(set(large.index.column("key").to_pylist())) == 1000
        and np.bincount(large.patients).tolist() == [5] * 200
    )
    assert large.read_payload(999) == small_set.read_payload(999 % len(small_set))
    assert len(large.shard_names) > len(small_set.shard_names) and verify(large.path, quick=True).problems == []


def test_at_another_resolution_a_record_is_the_same_signal_and_keeps_the_limb_lead_law(small_set: ShardSet) -> None:
    record = small_set.read_record(0)
    fine = at_resolution(record, 1000.0)
    np.testing.assert_allclose(fine.millivolts(), record.millivolts(), atol=0.0085)  # III adds the rounding of I and II
    np.testing.assert_array_equal(fine.counts[2], fine.counts[1] - fine.counts[0])
    assert at_resolution(record, 200.0) is record


@pytest.mark.slow
def test_a_folder_of_wfdb_records_is_measured_as_well(real_data: Path) -> None:
    figures = measure_data(
        real_data / "ptb-xl" / "records500",
        records=32,
        rounds=1,
        compare=False,
        sizes=SMALL,
        measures=CHEAP,
    )
    assert figures["records"] == 32 and figures["compression_ratio"] > 4.5
    assert "wfdb_rdsamp_records_per_s_per_core" not in figures


def test_without_a_set_a_virtual_cohort_is_measured() -> None:
    figures = measure_data(records=12, rounds=1, compare=False, sizes=SMALL, measures=CHEAP)
    assert figures["records"] == 12 and figures["samples"] == 5000 and figures["compression_ratio"] > 4
    (row,) = [row for row in figures["table"] if row["figure"] == "compression_ratio_1uV"]
    assert (
        row["met"] is None and row["target"] == ">= 5 on real records"
    )  # what is asked of people's recordings says nothing about made-up ones


def test_nothing_to_measure_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no WFDB record to measure"):
        measure_data(tmp_path)
