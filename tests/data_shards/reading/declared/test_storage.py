"""Every storage format is decoded to the numbers that it declares, and no count is cut where 16 bits do not hold it.

Right values come from the wfdb package, from scipy, or from the numbers that were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wfdb

from cardialign.data_shards.reading.wfdb import formats
from cardialign.data_shards.reading.wfdb.reader import read_wfdb
from tests.support.declared_records import (
    COUNTS,
    LEADS,
    millivolts,
    packed_212,
    refused,
    write,
    wrsamp,
)


@pytest.mark.parametrize("storage", ["16", "24", "32", "212", "80", "516", "524"])
def test_peaks_survive_the_gain_and_baseline_that_wrsamp_chooses(tmp_path: Path, storage: str) -> None:
    path = wrsamp(tmp_path, storage, p_signal=COUNTS.T / 1000 - 0.3)
    signal = read_wfdb(path)
    truth = wfdb.rdrecord(str(path)).p_signal.T
    assert np.abs(millivolts(signal) - truth).max() < 1e-3
    assert not signal.flags


def test_counts_beyond_16_bits_with_a_common_divisor_come_back_exactly(tmp_path: Path) -> None:
    wide = COUNTS * 30  # a device of 24 bits whose converter has fewer
    assert np.abs(wide).max() > 32767
    raw = np.ascontiguousarray(wide.T).astype("<i4").tobytes()
    signal = read_wfdb(write(tmp_path, raw, "32", gain="30000/mV"))
    np.testing.assert_array_equal(signal.counts * np.rint(30000 / signal.gain[:, None]), wide)


def test_values_that_16_bits_hold_in_coarse_steps_only_are_flagged(tmp_path: Path) -> None:
    wide = COUNTS.copy()
    wide[1] += 300_001  # an electrode's offset of 300 mV
    signal = read_wfdb(write(tmp_path, np.ascontiguousarray(wide.T).astype("<i4").tobytes(), "32"))
    assert signal.flags == {"coarse": (1,)} and 1000 / signal.gain[1] == 10  # the finest whole step: 302 mV / 32767
    assert np.abs(millivolts(signal) - wide / 1000).max() <= 0.5 / signal.gain.min() + 1e-9
    np.testing.assert_array_equal(signal.counts[[0, 2]], wide[[0, 2]])


@pytest.mark.parametrize("storage", [8, 16, 24, 32, 61, 80, 160, 212, 310, 311])
@pytest.mark.parametrize("samples", [1, 2, 3, 100])
def test_any_bytes_in_any_format_are_the_numbers_that_wfdb_reads(tmp_path: Path, storage: int, samples: int) -> None:
    raw = np.random.default_rng(storage).integers(0, 256, formats.bytes_of(storage, 3 * samples), dtype=np.uint8)
    if storage == 311:
        raw[3::4] &= 0x3F  # two bits of four bytes are unused
    write(tmp_path, raw.tobytes(), str(storage), line=f"r 3 500 {samples}", checks=[(5, 0), (-7, 0), (0, 0)])
    theirs = wfdb.rdrecord(str(tmp_path / "r"), physical=False).d_signal
    ours = formats.decode(storage, b"??" + raw.tobytes(), 2, 3 * samples).astype(np.int64).reshape(samples, 3)
    if storage == 8:
        ours = ours.cumsum(axis=0) + np.array([5, -7, 0])
    np.testing.assert_array_equal(ours, theirs)
    assert formats.samples_in(storage, len(raw)) == 3 * samples


def test_a_lead_of_format_8_begins_at_its_first_value_or_at_the_zero_of_its_adc(tmp_path: Path) -> None:
    steps = np.array([[1, 1, 1], [-1, 0, 2]], dtype=np.int8)
    (tmp_path / "r.dat").write_bytes(steps.tobytes())
    (tmp_path / "r.hea").write_text(
        "r 3 500 2\nr.dat 8 200 12 0 50 0 0 I\nr.dat 8 200 12 0 0 0 0 II\nr.dat 8 200(0) 12 9\n"
    )
    assert read_wfdb(tmp_path / "r").counts.tolist() == [[51, 50], [1, 1], [10, 12]]


@pytest.mark.parametrize(("storage", "lowest"), [("80", -128), ("212", -2048), ("310", -512), ("24", -(1 << 23))])
def test_the_lowest_count_of_each_format_is_no_value(tmp_path: Path, storage: str, lowest: int) -> None:
    counts = np.full(6, 3)
    counts[4] = lowest
    packed = {
        "80": lambda: (counts + 128).astype("u1").tobytes(),
        "212": lambda: b"\x03\x00\x03" * 2 + b"\x00\x08\x03",
        "310": lambda: bytes([6, 24, 6, 0, 6, 24, 0, 4]),
        "24": lambda: counts.astype("<i4").view("u1").reshape(-1, 4)[:, :3].tobytes(),
    }[storage]()
    signal = read_wfdb(write(tmp_path, packed, storage, line="r 1 500 6", leads=("I",)))
    assert signal.flags["non-finite"] == (0,) and signal.counts.tolist() == [[3, 3, 3, 3, 0, 3]]


def test_a_lead_that_is_not_stored_has_no_value(tmp_path: Path) -> None:
    write(tmp_path, COUNTS[:2], leads=LEADS[:2])
    header = (tmp_path / "r.hea").read_text().replace("r 2", "r 3")
    (tmp_path / "r.hea").write_text(header + "~ 0 1000/mV 16 0 0 0 0 V1\n")
    signal = read_wfdb(tmp_path / "r")
    assert signal.flags == {"non-finite": (2,)} and not signal.counts[2].any()
    np.testing.assert_array_equal(signal.counts[:2], COUNTS[:2])


def test_leads_in_files_and_formats_of_their_own_are_one_record(tmp_path: Path) -> None:
    counts = COUNTS // 2
    made = wfdb.Record(
        record_name="r", n_sig=3, fs=500, sig_len=600, sig_name=list(LEADS), units=["mV", "uV", "mV"],
        fmt=["16", "212", "24"], adc_gain=[1000.0, 0.5, 2000.0], baseline=[5, -5, 10], adc_res=[16, 12, 24],
        adc_zero=[0] * 3, file_name=["x.dat", "y.dat", "z.dat"], d_signal=counts.T, byte_offset=[None] * 3,
        block_size=[0] * 3, samps_per_frame=[1] * 3, skew=[None] * 3, init_value=[int(row[0]) for row in counts],
    )  # fmt: skip
    made.checksum = made.calc_checksum()
    made.wrsamp(write_dir=str(tmp_path))
    read, theirs = read_wfdb(tmp_path / "r"), wfdb.rdrecord(str(tmp_path / "r")).p_signal.T
    np.testing.assert_allclose(millivolts(read), theirs * [[1], [1e-3], [1]], atol=1e-12)
    assert not read.flags
    (tmp_path / "y.dat").write_bytes((tmp_path / "y.dat").read_bytes()[:-3])
    assert "truncated-signal" in refused(tmp_path / "r") and "y.dat" in refused(tmp_path / "r")


def test_the_offset_of_a_file_counts_for_all_its_leads_however_often_it_is_given(tmp_path: Path) -> None:
    raw = b"24 bytes before samples." + COUNTS.T.astype("<i2").tobytes()
    np.testing.assert_array_equal(read_wfdb(write(tmp_path, raw, ["16+24", "16", "16"])).counts, COUNTS)
    assert "several ways" in refused(write(tmp_path, raw, ["16+24", "16+22", "16+24"]))


@pytest.mark.parametrize("storage", ["16x2", "212x2", "32x2"])
def test_a_header_that_does_not_say_its_length_is_as_long_as_its_file(tmp_path: Path, storage: str) -> None:
    frames = np.concatenate([lead.reshape(-1, 2) for lead in COUNTS // 2], axis=1)
    raw = {
        "16x2": lambda: frames.astype("<i2").tobytes(),
        "32x2": lambda: frames.astype("<i4").tobytes(),
        "212x2": lambda: packed_212(frames.reshape(-1)),
    }[storage]()
    read = read_wfdb(write(tmp_path, raw + b"\1", storage, line="r 3 250"))
    np.testing.assert_array_equal(read.counts, COUNTS // 2)
