"""What a text table says beside its numbers is read: comments with names, rate and unit, a row of units, the words for
no value. And a table that ends within a row is cut off."""

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

ROWS = 300
MILLIVOLTS = ecg_counts(ROWS, gain=1000) / 1000
NAMES = list(STANDARD_LEADS)
OTHER_ORDER = NAMES[::-1]
FRAME = pd.DataFrame(MILLIVOLTS.T, columns=NAMES)


def only(root: Path, **options: object) -> EcgRecord:
    source = open_source("arrays", root, **options)
    (entry,) = source.entries()
    return source.read(entry)


def written(root: Path, text: str) -> Path:
    (root / "a.csv").write_text(text, encoding="utf-8")
    return root


def body(scale: float = 1.0) -> str:
    return (FRAME * scale).to_csv(index=False, float_format="%.4f")


@pytest.mark.parametrize(("separator", "header"), [(",", ","), (" ", " "), (" ", ", "), ("\t", "\t"), (";", ";")])
def test_the_header_that_numpy_writes_behind_a_hash_names_the_leads(
    tmp_path: Path, separator: str, header: str
) -> None:
    turned = MILLIVOLTS[::-1].T
    np.savetxt(tmp_path / "a.csv", turned, delimiter=separator, header=header.join(OTHER_ORDER), fmt="%.4f")
    np.testing.assert_allclose(only(tmp_path, sampling_rate=500).millivolts(), MILLIVOLTS, atol=1e-3)


def test_leads_named_in_a_comment_are_the_leads(tmp_path: Path) -> None:
    rows = FRAME[OTHER_ORDER].to_csv(index=False, header=False)
    record = only(written(tmp_path, f"# my device\n# leads: {', '.join(OTHER_ORDER)}\n{rows}"), sampling_rate=500)
    np.testing.assert_allclose(record.millivolts(), MILLIVOLTS, atol=1e-3)


@pytest.mark.parametrize(
    "line", ["# sampling rate: 250 Hz", "# Fs = 250", "#fs=250, unit=mV", "# Sampling frequency (Hz): 250.0"]
)
def test_a_rate_in_a_comment_is_the_rate_and_contradicts_the_option(tmp_path: Path, line: str) -> None:
    written(tmp_path, f"{line}\n{body()}")
    assert only(tmp_path).sampling_rate == 250
    with pytest.raises(RecordRejected, match="says 250, the option sampling_rate says 500"):
        only(tmp_path, sampling_rate=500)


@pytest.mark.parametrize("line", ["# unit: uV", "# fs = 500; units = µV", "#Unit=microvolts"])
def test_a_unit_in_a_comment_is_the_unit(tmp_path: Path, line: str) -> None:
    record = only(written(tmp_path, f"{line}\n{body(1000)}"), sampling_rate=500)
    np.testing.assert_allclose(record.millivolts(), MILLIVOLTS, atol=1e-3)
    with pytest.raises(RecordRejected, match="the option unit says mV"):
        only(tmp_path, sampling_rate=500, unit="mV")


def test_comments_about_other_things_are_no_facts_of_the_signal(tmp_path: Path) -> None:
    notes = "# Filter: 0.05-150 Hz\n# line frequency: 50 Hz\n# Heart rate: 72 bpm\n# Units of age: years\n"
    record = only(written(tmp_path, notes + body()), sampling_rate=500)
    np.testing.assert_allclose(record.millivolts(), MILLIVOLTS, atol=1e-3)


@pytest.mark.parametrize(("unit", "scale"), [("mV", 1), ("uV", 1000)])
def test_a_row_of_units_under_the_names_is_read_as_such(tmp_path: Path, unit: str, scale: float) -> None:
    """As PhysioNet's rdsamp and LightWAVE write samples.csv: quotes, minutes and seconds, a dash for no value."""
    lines = [",".join(["'Elapsed time'", *(f"'{name}'" for name in NAMES)])]
    lines.append(",".join(["'hh:mm:ss.mmm'", *([f"'{unit}'"] * 12)]))
    for row, values in enumerate(MILLIVOLTS.T * scale):
        cells = [f"{value:.4f}" for value in values]
        cells[2] = "-" if row == 10 else cells[2]
        lines.append(",".join([f"'0:{row / 500:06.3f}'", *cells]))
    record = only(written(tmp_path, "\n".join(lines) + "\n"), sampling_rate=500)
    expected = MILLIVOLTS.copy()
    expected[2, 10] = 0
    np.testing.assert_allclose(record.millivolts(), expected, atol=1e-3)
    assert record.quality["non-finite"] == ("III",)
    with pytest.raises(RecordRejected, match="which is 500 Hz, not the 250 Hz"):
        only(tmp_path, sampling_rate=250)


@pytest.mark.parametrize("word", ["#N/A", "#DIV/0!", "1.#QNAN", "-1.#IND", "1.#INF", "-nan(ind)", "-"])
def test_a_word_for_no_value_takes_no_other_value_with_it(tmp_path: Path, word: str) -> None:
    table = FRAME.astype(object)
    table.iloc[20, 2] = word
    written(tmp_path, table.to_csv(index=False))
    expected = MILLIVOLTS.copy()
    expected[2, 20] = np.nan
    np.testing.assert_allclose(read_array(tmp_path / "a.csv").values.T, expected, atol=1e-9)


def test_comments_between_rows_are_no_rows(tmp_path: Path) -> None:
    lines = body().splitlines()
    written(tmp_path, "\n".join([*lines[:50], "# electrode adjusted", *lines[50:], "# end"]) + "\n")
    np.testing.assert_allclose(read_array(tmp_path / "a.csv").values.T, MILLIVOLTS, atol=1e-3)


@pytest.mark.parametrize(
    ("word", "known"),
    [("#N/A", True), ("#DIV/0!", True), ("#NAME?", True), ("#NV", False), ("#WERT!", False), ("###", False)],
)
def test_a_row_that_begins_with_a_cell_of_a_spreadsheet_is_a_row(tmp_path: Path, word: str, known: bool) -> None:
    """Left out as a comment, it would move every later sample. A word that is known is no value, others are refused."""
    table = FRAME.astype(object)
    table.iloc[20, 0] = word
    written(tmp_path, "# exported ### by hand\n" + table.to_csv(index=False))
    if not known:
        with pytest.raises(RecordRejected, match=f"row 21 of column I holds '{word}'"):
            read_array(tmp_path / "a.csv")
        return
    expected = MILLIVOLTS.copy()
    expected[0, 20] = np.nan
    np.testing.assert_allclose(read_array(tmp_path / "a.csv").values.T, expected, atol=1e-9)


@pytest.mark.parametrize("cut", [20, 40])
def test_a_table_that_ends_within_a_row_is_cut_off(tmp_path: Path, cut: int) -> None:
    written(tmp_path, body()[:-cut])
    with pytest.raises(RecordRejected, match="its last row has") as told:
        read_array(tmp_path / "a.csv")
    assert told.value.reason == "truncated-signal"


@pytest.mark.parametrize(("start", "word"), [(b"\x1f\x8b\x08", "a gzip file"), (b"PK\x03\x04", "Excel workbook")])
def test_packed_bytes_under_the_name_of_a_table_are_named(tmp_path: Path, start: bytes, word: str) -> None:
    (tmp_path / "a.csv").write_bytes(start + bytes(range(256)))
    with pytest.raises(RecordRejected, match=word):
        read_array(tmp_path / "a.csv")


def test_facts_that_cannot_be_read_are_not_passed_over(tmp_path: Path) -> None:
    """`df.columns.to_numpy()` is an array of objects: without its words the leads would be taken in another order."""
    words = np.array(OTHER_ORDER, dtype=object)
    for name, value in {"leads": words, "feature_names": words, "units": np.array(["uV"] * 12, dtype=object)}.items():
        np.savez(tmp_path / "a.npz", signal=MILLIVOLTS[::-1], fs=500, **{name: value})
        with pytest.raises(RecordRejected, match=f"'{name}' says something about the signal and holds objects"):
            only(tmp_path)
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, fs=500, meta=np.array({"site": 1}, dtype=object))
    np.testing.assert_allclose(only(tmp_path).millivolts(), MILLIVOLTS, atol=1e-3)


def test_a_rate_that_no_heart_has_is_one_of_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, rate=250)
    with pytest.raises(RecordRejected, match="rate says 250, the option sampling_rate says 500"):
        only(tmp_path, sampling_rate=500)
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, rate=72)
    assert only(tmp_path, sampling_rate=500).sampling_rate == 500


def test_a_file_of_two_arrays_is_no_record(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, MILLIVOLTS)
        np.save(file, MILLIVOLTS * 2)
    with pytest.raises(RecordRejected, match="bytes follow its array"):
        read_array(tmp_path / "a.npy")
