"""Headers as other tools write them: names, encodings, line ends, missing fields.

Right values come from the wfdb package, from scipy, or from the numbers that were written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import wfdb

from cardialign.data_shards.reading.wfdb.reader import read_wfdb
from cardialign.data_shards.sources import open_source
from tests.support.declared_records import (
    COUNTS,
    LEADS,
    millivolts,
    refused,
    write,
)


@pytest.mark.parametrize(
    "word", ["folder/r", "a/b/r", "records/17", "r"], ids=["folder", "two folders", "a number", "none"]
)
def test_a_folder_in_the_record_name_is_no_count_of_segments(tmp_path: Path, word: str) -> None:
    name = word.rpartition("/")[2]
    path = write(tmp_path, COUNTS, name=name, line=f"{word} 3 500 600", file=f"{word}.dat")
    np.testing.assert_array_equal(read_wfdb(path).counts, COUNTS)


def test_a_signal_file_in_a_folder_below_the_header_is_read_there_else_the_folder_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, COUNTS, file="below/r.dat")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "r.dat").write_bytes((2 * COUNTS).T.astype("<i2").tobytes())
    np.testing.assert_array_equal(read_wfdb(path).counts, 2 * COUNTS)
    for file in (tmp_path / "below" / "r.dat", tmp_path / "r.dat"):
        file.unlink()
    message = refused(path)
    assert message.startswith("missing-file") and "folder 'below'" in message
    assert "not a file name" in refused(write(tmp_path, COUNTS, name="x", file="below/../../x.dat"))


ODD_COMMENTS = {
    "cp1252 ellipsis": b"# Verdacht\x85 unklar f\xfcr III",
    "NEL in UTF-8": "# one\x85II two".encode(),
    "line separator": "# one\u2028II two".encode(),
    "vertical tab and form feed": b"# one\x0bII\x0c two",
    "file separators": b"# one\x1cII\x1dV1\x1e",
    "undefined in cp1252": b"# \x81\x8d\xb5V",
    "carriage return": b"# one\rII two",
}


@pytest.mark.parametrize("comment", ODD_COMMENTS)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_end_at_lf_or_cr_lf_only(tmp_path: Path, comment: str, end: bytes) -> None:
    write(tmp_path, COUNTS)
    lines = (tmp_path / "r.hea").read_bytes().splitlines()
    lines[2:2] = [ODD_COMMENTS[comment], b"", b"\t"]
    (tmp_path / "r.hea").write_bytes(b"# before the record line" + end + end.join(lines) + end)
    read = read_wfdb(tmp_path / "r")
    np.testing.assert_array_equal(read.counts, COUNTS)
    assert read.lead_names == LEADS and len(read.comments) == 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_header_with_a_byte_order_mark_and_tabs_is_read(tmp_path: Path, encoding: str) -> None:
    write(tmp_path, COUNTS, line="r 3 500 600 23:59:59.125 31/12/1999", gain="1.0e3(0.0)/mV")
    text = (tmp_path / "r.hea").read_text().replace(" ", "\t")
    (tmp_path / "r.hea").write_bytes(text.encode(encoding))
    np.testing.assert_array_equal(read_wfdb(tmp_path / "r").counts, COUNTS)


def test_signal_lines_beyond_the_announced_ones_are_refused_and_remarks_are_not(tmp_path: Path) -> None:
    path = write(tmp_path, COUNTS)
    text = (tmp_path / "r.hea").read_text()
    (tmp_path / "r.hea").write_text(text.replace("r 3 500 600", "r 2 500"))
    assert "announces 2 signals, the header describes more" in refused(path)
    (tmp_path / "r.hea").write_text(text + "Age 63\nPacemaker 16 years\n")
    np.testing.assert_array_equal(read_wfdb(path).counts, COUNTS)


@pytest.mark.timeout(20)
def test_a_pipe_among_the_headers_of_a_folder_stops_no_listing(tmp_path: Path) -> None:
    write(tmp_path, COUNTS)
    os.mkfifo(tmp_path / "pipe.hea")
    for name in ("wfdb", "challenge"):
        source = open_source(name, tmp_path)
        (good,) = source.entries()
        assert source.read(good).samples == 600
        assert [missed.path for missed in source.not_seen()] == ["pipe.hea"]


def test_missing_fields_have_the_defaults_of_wfdb(tmp_path: Path) -> None:
    (tmp_path / "r.dat").write_bytes(COUNTS.T.astype("<i2").tobytes())
    for header in (
        "r 3\nr.dat 16\nr.dat 16 100\nr.dat 16 200(0)/mV 12\n",
        "r 3 250\nr.dat 16\nr.dat 16 100/mV\nr.dat 16\n",
    ):
        (tmp_path / "r.hea").write_text(header)
        read, theirs = read_wfdb(tmp_path / "r"), wfdb.rdrecord(str(tmp_path / "r"))
        np.testing.assert_array_equal(read.counts, COUNTS)
        assert read.gain.tolist() == theirs.adc_gain and read.sampling_rate == theirs.fs


def test_the_zero_of_the_adc_is_the_baseline_only_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "r.dat").write_bytes(COUNTS.T.astype("<i2").tobytes())
    (tmp_path / "r.hea").write_text(
        "r 3 500 600\nr.dat 16 200/mV 12 100\nr.dat 16 200(0)/mV 12 100\nr.dat 16 200(-7)/mV 12 100\n"
    )
    expected = wfdb.rdrecord(str(tmp_path / "r")).p_signal.T
    np.testing.assert_allclose(millivolts(read_wfdb(tmp_path / "r")), expected, atol=1e-12)
