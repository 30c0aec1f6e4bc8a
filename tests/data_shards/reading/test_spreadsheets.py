"""Signals in tables that spreadsheets and pandas wrote: lines for Excel, empty rows, words beside leads, clocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.arrays import read_array
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord
from cardialign.data_shards.sources import open_source
from tests.support.wfdb_files import ecg_counts

MILLIVOLTS = ecg_counts(1000, gain=1000) / 1000
NAMES = list(STANDARD_LEADS)
FRAME = pd.DataFrame(MILLIVOLTS.T, columns=NAMES)


def only(root: Path, **options: object) -> EcgRecord:
    source = open_source("arrays", root, **options)
    (entry,) = source.entries()
    return source.read(entry)


def table(mark: str, decimal: str = ".") -> str:
    return FRAME.to_csv(index=False, sep=mark, decimal=decimal, float_format="%.3f")


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "sep=;\r"])
def test_a_line_that_tells_excel_the_separator_is_no_row(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.csv").write_text(f"{line}\n{table(';', ',')}")
    np.testing.assert_allclose(read_array(tmp_path / "a.csv").values.T, np.round(MILLIVOLTS, 3), atol=1e-9)


@pytest.mark.parametrize("mark", [",", ";"])
def test_empty_rows_at_the_end_of_a_table_are_no_samples(tmp_path: Path, mark: str) -> None:
    (tmp_path / "a.csv").write_text(table(mark) + (mark * 11 + "\n") * 3)
    assert only(tmp_path, sampling_rate=500).samples == 1000
    lines = table(mark).splitlines()
    lines[5] = mark * 11
    (tmp_path / "a.csv").write_text("\n".join(lines))
    record = only(tmp_path, sampling_rate=500)
    assert record.samples == 1000 and len(record.quality["non-finite"]) == 12, "in between, values are missing"


def test_words_beside_leads_are_left_out_and_words_in_leads_are_not(tmp_path: Path) -> None:
    FRAME.assign(beat="N", note=["start", *[None] * 999]).to_csv(tmp_path / "a.csv", index=False)
    np.testing.assert_allclose(only(tmp_path, sampling_rate=500).millivolts(), MILLIVOLTS, atol=6e-4)
    for name in ("II", "II (uV)"):
        FRAME.assign(II="x").rename(columns={"II": name}).to_csv(tmp_path / "a.csv", index=False)
        with pytest.raises(RecordRejected, match=r"row 1 of column II.* holds 'x'"):
            only(tmp_path, sampling_rate=500)
    FRAME.assign(pressure=["1", "2", "x", *["4"] * 997]).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(RecordRejected, match="row 3 of column pressure holds 'x'"):
        only(tmp_path, sampling_rate=500)
    FRAME.rename(columns=dict(zip(NAMES, "abcdefghjklm", strict=True))).assign(a="x").to_csv(
        tmp_path / "a.csv", index=False
    )
    with pytest.raises(RecordRejected, match="row 1 of column a holds 'x'"):
        only(tmp_path, sampling_rate=500)


@pytest.mark.parametrize("kind", ["dates", "zoned", "durations", "clock"])
def test_clock_times_say_the_rate_as_numbers_do(tmp_path: Path, kind: str) -> None:
    milliseconds = pd.to_timedelta(np.arange(1000) * 4, unit="ms")
    index = {
        "dates": pd.Timestamp("2020-02-29 23:59:58") + milliseconds,
        "zoned": (pd.Timestamp("2020-02-29 23:59:58") + milliseconds).tz_localize("Europe/Berlin"),
        "durations": milliseconds,
        "clock": [str(each)[7:] for each in milliseconds],
    }[kind]
    FRAME.set_axis(index).to_csv(tmp_path / "a.csv", index_label="when")
    assert only(tmp_path).sampling_rate == 250
    with pytest.raises(RecordRejected, match="not the 500 Hz of the option sampling_rate"):
        only(tmp_path, sampling_rate=500)
    FRAME.set_axis(milliseconds.floor("s")).to_csv(tmp_path / "a.csv", index_label="when")
    assert only(tmp_path, sampling_rate=250).samples == 1000, "a clock of whole seconds says no rate"
