"""A column of times or row numbers holds a table to its order: rows that were sorted otherwise, shuffled, or lost are
no recording; clocks that are rounded, jitter or begin anew are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.clocks import rows_out_of_order
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord
from cardialign.data_shards.sources import open_source
from tests.support.wfdb_files import ecg_counts

ROWS = 400
MILLIVOLTS = ecg_counts(ROWS, gain=1000) / 1000
SECONDS = np.arange(ROWS) / 500
ORDERS = {
    "reversed": list(range(ROWS))[::-1],
    "shuffled": np.random.default_rng(0).permutation(ROWS).tolist(),
    "two rows exchanged": [*range(200), 201, 200, *range(202, ROWS)],
    "one row lost": [*range(200), *range(201, ROWS)],
    "a stretch lost": [*range(100), *range(180, ROWS)],
}
COLUMNS = {
    "time": SECONDS,
    "Time (ms)": SECONDS * 1000,
    "timestamp": 1.6e9 + SECONDS,
    "epoch": 1.6e12 + SECONDS * 1000,
    "sample": np.arange(ROWS),
    "index": np.arange(ROWS),
    "datetime": pd.date_range("2020-01-01", periods=ROWS, freq="2ms").astype(str),
}


def only(root: Path, **options: object) -> EcgRecord:
    source = open_source("arrays", root, **options)
    (entry,) = source.entries()
    return source.read(entry)


def frame(name: str, column: object) -> pd.DataFrame:
    table = pd.DataFrame(MILLIVOLTS.T, columns=list(STANDARD_LEADS))
    table.insert(0, name, column)
    return table


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("column", ["time", "epoch", "sample", "datetime"])
def test_rows_that_do_not_follow_one_another_are_no_recording(tmp_path: Path, column: str, order: str) -> None:
    frame(column, COLUMNS[column]).iloc[ORDERS[order]].to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(RecordRejected, match=r"out of order or missing") as told:
        only(tmp_path, sampling_rate=500)
    assert told.value.reason == "bad-format"


@pytest.mark.parametrize("order", ORDERS)
def test_the_row_numbers_that_pandas_writes_are_held_to_their_order(tmp_path: Path, order: str) -> None:
    frame("x", 0.0).drop(columns="x").iloc[ORDERS[order]].to_csv(tmp_path / "a.csv")
    with pytest.raises(RecordRejected, match=r"column of row numbers goes from \d+ to \d+ between rows"):
        only(tmp_path, sampling_rate=500)


def test_times_beside_an_array_are_held_to_their_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, time=SECONDS[ORDERS["shuffled"]])
    with pytest.raises(RecordRejected, match="'time' goes from"):
        only(tmp_path, sampling_rate=500)


@pytest.mark.parametrize("column", COLUMNS)
def test_columns_in_order_are_left_out_and_change_nothing(tmp_path: Path, column: str) -> None:
    frame(column, COLUMNS[column]).to_csv(tmp_path / "a.csv", index=False)
    np.testing.assert_allclose(only(tmp_path, sampling_rate=500).millivolts(), MILLIVOLTS, atol=1e-3)


@pytest.mark.parametrize("name", ["epoch", "timestamp", "unixtime"])
def test_times_since_1970_say_the_rate(tmp_path: Path, name: str) -> None:
    frame(name, 1.6e9 + SECONDS).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(RecordRejected, match="500 or 500000"):
        only(tmp_path, sampling_rate=250)


@pytest.mark.parametrize(
    "column",
    [
        np.round(np.arange(ROWS) / 360, 3),  # steps of 2 and 3 ms
        np.round(SECONDS, 2),  # five samples share a time
        SECONDS + np.random.default_rng(1).normal(0, 3e-4, ROWS),
        np.round((SECONDS + 59.5) % 60, 3),  # the second of the minute
        np.full(ROWS, 7.0),
    ],
    ids=["360 Hz in ms", "coarse", "jitter", "begins anew", "one number"],
)
def test_clocks_that_are_rounded_jitter_or_begin_anew_are_in_order(column: np.ndarray) -> None:
    assert rows_out_of_order(["time"], column[:, np.newaxis]) == ""


def test_numbers_that_begin_anew_are_in_order_and_others_are_not_looked_at() -> None:
    assert rows_out_of_order(["sample"], (np.arange(ROWS) % 256)[:, np.newaxis]) == ""
    assert rows_out_of_order(["RESP"], np.random.default_rng(2).normal(size=(ROWS, 1))) == ""
    gap = np.r_[np.arange(200) % 256, 210 + np.arange(200)]
    assert "from 199 to 210 between rows 200 and 201" in rows_out_of_order(["frame no."], gap[:, np.newaxis])
