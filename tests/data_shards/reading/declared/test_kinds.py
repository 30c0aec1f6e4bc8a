"""Files of another kind than the header says are read as what they are, or refused by name.

Right values come from the wfdb package, from scipy, or from the numbers that were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io

from cardialign.data_shards.reading.wfdb.reader import read_wfdb
from tests.support.declared_records import (
    COUNTS,
    refused,
    write,
    wrsamp,
)


def test_a_matlab_file_of_level_4_is_read_as_the_numbers_it_says(tmp_path: Path) -> None:
    for dtype in ("f8", "f4", "i4", "i2", ">i2", ">f8"):
        path = tmp_path / "r.mat"
        scipy.io.savemat(path, {"val": COUNTS.astype(dtype)}, format="4")
        write(tmp_path, path.read_bytes(), "16+24", file="r.mat")
        read = read_wfdb(tmp_path / "r")
        np.testing.assert_array_equal(read.counts, COUNTS)
        assert not read.flags, dtype


def test_a_matlab_file_of_level_5_is_known_by_its_version_whatever_its_text(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"val": COUNTS.astype("i2")}, do_compression=True)
    raw = b"written by a program that says so".ljust(116) + (tmp_path / "a.mat").read_bytes()[116:]
    np.testing.assert_array_equal(read_wfdb(write(tmp_path, raw, "16+24", file="r.mat")).counts, COUNTS)


@pytest.mark.parametrize("level", ["4", "5"])
def test_a_matlab_matrix_that_is_longer_than_its_header_says_is_flagged_unless_checksums_explain_it(
    tmp_path: Path, level: str
) -> None:
    every = tuple(range(len(COUNTS)))
    sums = [(int(lead[0]), int(lead.sum().astype(np.int16))) for lead in COUNTS]
    more = np.concatenate([COUNTS, COUNTS[:, :50]], axis=1).astype("f8")
    for values, told, flags in (
        (more, [], {"surplus": every}),
        (more, sums, {}),
        (np.pad(COUNTS, ((0, 0), (0, 50))).astype("f8"), [], {}),
    ):
        scipy.io.savemat(tmp_path / "a.mat", {"val": values, "Fs": 500.0}, format=level)
        raw = (tmp_path / "a.mat").read_bytes()
        read = read_wfdb(write(tmp_path, raw, "16+24", file="r.mat", checks=told))
        np.testing.assert_array_equal(read.counts, COUNTS)
        assert read.flags == flags, told


def test_bytes_behind_a_matlab_matrix_are_flagged_and_another_variable_is_none(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"val": COUNTS.astype("f8"), "Fs": 500.0}, format="4")
    raw = (tmp_path / "a.mat").read_bytes()
    assert not read_wfdb(write(tmp_path, raw, "16+24", file="r.mat")).flags
    scipy.io.savemat(tmp_path / "a.mat", {"val": COUNTS.astype("f8")}, format="4")
    raw = (tmp_path / "a.mat").read_bytes() + bytes([7]) * 64
    assert read_wfdb(write(tmp_path, raw, "16+24", file="r.mat")).flags == {"surplus": tuple(range(len(COUNTS)))}


def test_matlab_values_of_one_count_too_many_are_refused_not_cut(tmp_path: Path) -> None:
    counts = COUNTS.copy()
    counts[0, 0] = 32768
    scipy.io.savemat(tmp_path / "a.mat", {"val": counts.astype("f8")})
    assert "expected 16-bit counts" in refused(
        write(tmp_path, (tmp_path / "a.mat").read_bytes(), "16+24", file="r.mat")
    )


MATLAB_73 = (b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM").ljust(512) + b"\x89HDF\r\n\x1a\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"
OTHERS: dict[str, tuple[str, bytes, int]] = {
    "version 7.3 (HDF5)": ("16+24", MATLAB_73, 1),
    "an HDF5 file": ("16", b"\x89HDF\r\n\x1a\n", 1),
    "a NumPy array": ("16", b"\x93NUMPY\1\0v\0" + b" " * 118, 1),
    "a ZIP archive": ("16", b"PK\x03\x04", 1),
    "a gzip file": ("16+24", b"\x1f\x8b\x08\0", 1),
    "a FLAC file": ("16", b"fLaC", 1),
    "a RIFF (WAV) file": ("16", b"RIFF\0\0\0\0WAVEfmt ", 1),
    "text, which begins with '0.123": ("16", b"0.123,-0.456,0.789\n", 200),
    "text, which begins with '<!DOCTYPE": ("212", b"<!DOCTYPE html>\n<html><body>Not found</body></html>\n", 200),
    "text, which begins with 'version https": ("16", LFS, 200),
}
"""Kind -> the format its header says, how it begins, how often that is written."""


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_another_kind_behind_a_header_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    storage, begin, times = OTHERS[kind]
    path = write(tmp_path, begin * times + COUNTS.T.astype("<i2").tobytes(), storage)
    message = refused(path)
    assert message.startswith("bad-format") and kind in message and "r.dat" in message


def test_counts_that_look_like_another_kind_are_counts_when_their_checksums_say_so(tmp_path: Path) -> None:
    counts = COUNTS.copy()
    counts[:2, 0] = np.frombuffer(b"fLaC", "<i2")
    sums = [(int(row[0]), int(row.sum())) for row in counts]
    np.testing.assert_array_equal(read_wfdb(write(tmp_path, counts, checks=sums)).counts, counts)
    assert "a FLAC file" in refused(write(tmp_path, counts))


def test_counts_behind_the_head_of_a_wave_or_numpy_file_are_reached_by_the_offset(tmp_path: Path) -> None:
    from scipy.io import wavfile

    wavfile.write(tmp_path / "a.wav", 500, COUNTS.T.astype("<i2"))
    raw = (tmp_path / "a.wav").read_bytes()
    np.testing.assert_array_equal(read_wfdb(write(tmp_path, raw, f"16+{len(raw) - COUNTS.size * 2}")).counts, COUNTS)


def test_flac_that_does_not_fit_its_header_is_refused(tmp_path: Path) -> None:
    path = wrsamp(tmp_path, "516", d_signal=COUNTS.T)
    header = (tmp_path / "r.hea").read_text()
    np.testing.assert_array_equal(read_wfdb(path).counts, COUNTS)
    for change, says in (
        (("r 3 500 600", "r 3 500 601"), "600 samples, expected 601"),
        ((" 516 ", " 508 "), "3 channels of PCM_16, expected 3 of at most 8 bits"),
        ((header.splitlines()[3], ""), "3 channels of PCM_16, expected 2"),
    ):
        (tmp_path / "r.hea").write_text(header.replace(*change).replace("r 3", "r 3" if change[1] else "r 2"))
        assert says in refused(path)
    (tmp_path / "r.hea").write_text(header)
    (tmp_path / "r.dat").write_bytes(COUNTS.T.astype("<i2").tobytes())
    assert "its header says FLAC (format 516), which it is not" in refused(path)
