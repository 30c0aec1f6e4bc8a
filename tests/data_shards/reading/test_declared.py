"""A record is decoded by what its files declare and compared with what its header declares; what does not fit is
refused by name. Right values come from the wfdb package, from scipy, or from the numbers that were written."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import wfdb

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.wfdb import formats
from cardialign.data_shards.reading.wfdb.reader import WfdbSignal, read_wfdb
from cardialign.data_shards.sources import open_source
from tests.support.wfdb_files import ecg_counts

LEADS = ("I", "II", "V1")
COUNTS = ecg_counts(600, leads=3, gain=1000).astype(np.int64)


def write(
    folder: Path,
    raw: bytes | np.ndarray,
    storage: str | Sequence[str] = "16",
    *,
    name: str = "r",
    line: str = "",
    leads: Sequence[str] = LEADS,
    gain: str | Sequence[str] = "1000(0)/mV",
    checks: Sequence[tuple[int, int]] = (),
    file: str = "",
) -> Path:
    """A header with one line per lead, and its signal file: bytes, or counts (L, T) as format 16. checks: first value
    and checksum of each lead."""
    samples = raw.shape[1] if isinstance(raw, np.ndarray) else 600
    lines = [line or f"{name} {len(leads)} 500 {samples}"]
    for k, lead in enumerate(leads):
        how, scale = (value if isinstance(value, str) else value[k] for value in (storage, gain))
        first, total = checks[k] if checks else (0, 0)
        lines.append(f"{file or name + '.dat'} {how} {scale} 16 0 {first} {total} 0 {lead}")
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")
    data = raw if isinstance(raw, bytes) else raw.T.astype("<i2").tobytes()
    (folder / os.path.basename(file or f"{name}.dat")).write_bytes(data)
    return folder / name


def millivolts(signal: WfdbSignal) -> np.ndarray:
    return signal.counts / signal.gain[:, None]


def refused(path: Path) -> str:
    with pytest.raises(RecordRejected) as caught:
        read_wfdb(path)
    return str(caught.value)


def wrsamp(folder: Path, storage: str, **signal: np.ndarray) -> Path:
    """What `wfdb.wrsamp` writes: gain, baseline, first values and checksums are its own."""
    known = {} if "p_signal" in signal else {"adc_gain": [1000.0] * 3, "baseline": [0] * 3}
    wfdb.wrsamp(
        "r", fs=500, units=["mV"] * 3, sig_name=list(LEADS), fmt=[storage] * 3, write_dir=str(folder), **known, **signal
    )
    return folder / "r"


# counts that do not fit


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


# storage


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


def packed_212(samples: np.ndarray) -> bytes:
    first, second = samples.reshape(-1, 2).T & 0xFFF
    return np.stack([first & 0xFF, first >> 8 | second >> 8 << 4, second & 0xFF], axis=1).astype("u1").tobytes()


# frames and skew


@pytest.mark.parametrize(("rate", "per_frame"), [(50, 10), (1, 500), (62.4725, 4)])
def test_a_record_of_frames_is_read_at_the_rate_of_its_samples(tmp_path: Path, rate: float, per_frame: int) -> None:
    signal = ecg_counts(1000, leads=3, gain=1000)
    frames = np.concatenate([lead.reshape(-1, per_frame) for lead in signal], axis=1)
    path = write(tmp_path, frames.T, f"16x{per_frame}", line=f"r 3 {rate} {1000 // per_frame}")
    read = read_wfdb(path)
    np.testing.assert_array_equal(read.counts, signal)
    assert read.sampling_rate == pytest.approx(rate * per_frame)


def test_a_missing_sample_in_a_frame_is_flagged_and_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    signal = ecg_counts(1000, leads=3, gain=1000)
    signal[1, 301] = -32768
    frames = np.concatenate([lead.reshape(-1, 2) for lead in signal], axis=1)
    read = read_wfdb(write(tmp_path, frames.T, "16x2", line="r 3 250 500"))
    assert read.flags == {"non-finite": (1,)} and read.counts[1, 301] == 0
    signal[1, 301] = 0
    np.testing.assert_array_equal(read.counts, signal)


def test_leads_of_fewer_samples_per_frame_are_brought_to_the_rate_of_the_others(tmp_path: Path) -> None:
    time = np.arange(2000) / 500
    fast = np.rint(1000 * np.sin(2 * np.pi * 40 * time)).astype(np.int64)  # an average of two would lose 3 %
    slow = np.rint(800 * np.sin(2 * np.pi * 5 * time + 1) + 3000).astype(np.int64)
    gap = slow[::2].copy()
    gap[400] = -32768
    pressure = np.arange(1000)
    frames = np.concatenate([fast.reshape(-1, 2), gap[:, None], pressure[:, None]], axis=1)
    read = read_wfdb(
        write(
            tmp_path, frames.T, ["16x2", "16", "16"], line="r 3 250 1000", leads=("II", "V1", "ABP"),
            gain=["1000(0)/mV", "1000(0)/mV", "1/mmHg"],
        )
    )  # fmt: skip
    assert read.sampling_rate == 500 and read.notes == {"raised_to_the_rate_of_other_leads": ["V1"]}
    np.testing.assert_array_equal(read.counts[0], fast)
    assert read.flags == {"non-finite": (1,)} and read.counts[1, 800:802].tolist() == [0, 0]
    inner = np.r_[50:800, 802:1950]
    assert np.abs(read.counts[1, inner] - slow[inner]).max() <= 4  # of 800, and of 3800 beside the gap
    np.testing.assert_array_equal(read.counts[2], np.repeat(pressure, 2))


def test_a_slow_channel_that_is_no_lead_does_not_change_the_leads(tmp_path: Path) -> None:
    signal = ecg_counts(1000, leads=2, gain=1000)
    frames = np.concatenate([signal[0].reshape(-1, 4), signal[1].reshape(-1, 4), np.zeros((250, 1), int)], axis=1)
    path = write(tmp_path, frames.T, ["16x4", "16x4", "16"], line="r 3 125 250", leads=("I", "II", "resp"))
    np.testing.assert_array_equal(read_wfdb(path).counts[:2], signal)


def test_two_skews_are_two_shifts_and_what_they_push_out_has_no_value(tmp_path: Path) -> None:
    late = [np.concatenate([np.full(skew, 9), row])[:600] for row, skew in zip(COUNTS, (0, 3, 5), strict=True)]
    read = read_wfdb(write(tmp_path, np.array(late), ["16", "16:3", "16:5"]))
    for lead, skew in enumerate((0, 3, 5)):
        np.testing.assert_array_equal(read.counts[lead, : 600 - skew], COUNTS[lead, : 600 - skew])
        assert not read.counts[lead, 600 - skew :].any()
    assert read.flags == {"non-finite": (1, 2)}
    whole = [
        np.concatenate([np.full(skew, 9), row, np.zeros(5 - skew, int)])
        for row, skew in zip(COUNTS, (0, 3, 5), strict=True)
    ]
    longer = read_wfdb(write(tmp_path, np.array(whole), ["16", "16:3", "16:5"], line="r 3 500 600"))
    np.testing.assert_array_equal(longer.counts, COUNTS)  # the file holds what the skew asks for
    assert not longer.flags


# segments


def segment(folder: Path, name: str, counts: np.ndarray, rate: str = "500", **how: object) -> None:
    leads = how.get("leads", LEADS)
    write(folder, counts, name=name, line=f"{name} {len(leads)} {rate} {counts.shape[1]}", **how)  # type: ignore[arg-type]


def record(folder: Path, *lines: str, name: str = "m") -> Path:
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n# Age: 60\n")
    return folder / name


def test_each_segment_has_its_own_unit_gain_baseline_and_order_of_leads(tmp_path: Path) -> None:
    segment(tmp_path, "s1", COUNTS[:, :200], gain="1000(0)/mV")
    segment(tmp_path, "s2", COUNTS[::-1, 200:300] + 50, gain="1(50)/uV", leads=LEADS[::-1])
    segment(tmp_path, "s3", 2 * COUNTS[:, 300:], gain="2000000(0)/V", leads=("i", "lead II", "v1"))
    read = read_wfdb(record(tmp_path, "m/3 3 500 600", "s1 200", "s2 100", "s3 300"))
    np.testing.assert_allclose(millivolts(read), COUNTS / 1000, atol=1e-9)
    assert read.lead_names == LEADS and not read.flags and read.comments == ("Age: 60",)


def test_a_variable_layout_has_leads_that_come_and_go_and_stretches_without_a_recording(tmp_path: Path) -> None:
    (tmp_path / "layout.hea").write_text("layout 3 500 0\n" + "".join(f"~ 0 1/NU 0 0 0 0 0 {lead}\n" for lead in LEADS))
    segment(tmp_path, "s1", COUNTS[1:, :200], leads=LEADS[1:])
    segment(tmp_path, "s2", COUNTS[[2, 0], 300:], leads=("V1", "I"))
    path = record(tmp_path, "m/4 3 500 600", "layout 0", "s1 200", "~ 100", "s2 300")
    read = read_wfdb(path)
    expected = COUNTS.copy()
    expected[0, :300], expected[1, 200:], expected[2, 200:300] = 0, 0, 0
    np.testing.assert_array_equal(read.counts, expected)
    assert read.flags == {"non-finite": (0, 1, 2)} and read.lead_names == LEADS


def test_a_coarse_first_segment_does_not_make_the_others_coarse(tmp_path: Path) -> None:
    segment(tmp_path, "s1", COUNTS[:, :300] // 100, gain="10(0)/mV")
    segment(tmp_path, "s2", COUNTS[:, 300:], gain="1000(0)/mV")
    segment(tmp_path, "s3", COUNTS[:, 300:], gain="333.3(0)/mV")
    read = read_wfdb(record(tmp_path, "m/3 3 500 900", "s1 300", "s2 300", "s3 300"))
    right = np.concatenate([COUNTS[:, :300] // 100 / 10, COUNTS[:, 300:] / 1000, COUNTS[:, 300:] / 333.3], axis=1)
    assert np.abs(millivolts(read) - right).max() <= 5e-4 + 1e-9


def test_segments_of_several_samples_per_frame_are_joined_at_the_highest_rate(tmp_path: Path) -> None:
    halves = np.concatenate([lead[:300].reshape(-1, 2) for lead in COUNTS], axis=1)
    write(tmp_path, halves.T, "16x2", name="s1", line="s1 3 250 150")
    write(
        tmp_path,
        np.concatenate([lead[300:].reshape(-1, 2) for lead in COUNTS], axis=1).T,
        "16x2",
        name="s2",
        line="s2 3 250 150",
    )
    read = read_wfdb(record(tmp_path, "m/2 3 250 300", "s1 150", "s2 150"))
    np.testing.assert_array_equal(read.counts, COUNTS)
    assert read.sampling_rate == 500


@pytest.mark.parametrize(
    ("second", "line", "says"),
    [
        ({"rate": "360"}, "m/2 3 500 600", "s2.hea: a segment at 360 Hz of a record at 500 Hz"),
        ({}, "m/2 3 500 601", "announces 601 samples, its segments have 600"),
        ({}, "m/2 4 500 600", "4 signals are announced, .*s1.hea has 3"),
        ({"leads": ("I", "II", "V2")}, "m/2 3 500 600", "s2.hea: the segment's lead 'V2' is not one lead"),
        ({"leads": ("I", "II", "II")}, "m/2 3 500 600", "s2.hea: the segment's lead 'II' is not one lead"),
        ({"gain": "1000/mmHg"}, "m/2 3 500 600", "bad-gain.*s2.hea: lead 'I' has the unit 'mmHg'"),
    ],
    ids=["rate", "total", "signals", "unknown lead", "lead twice", "unit"],
)  # fmt: skip
def test_a_segment_that_does_not_fit_the_record_is_named(tmp_path: Path, second: dict, line: str, says: str) -> None:
    segment(tmp_path, "s1", COUNTS[:, :300])
    segment(tmp_path, "s2", COUNTS[:, 300:], **second)
    record(tmp_path, line, "s1 300", "s2 300")
    with pytest.raises(RecordRejected, match=says):
        read_wfdb(tmp_path / "m")


def test_a_segment_of_another_length_of_fewer_leads_or_with_segments_of_its_own_is_named(tmp_path: Path) -> None:
    segment(tmp_path, "s1", COUNTS[:, :300])
    segment(tmp_path, "s2", COUNTS[:2, 300:], leads=LEADS[:2])
    assert "a segment of 300 samples, of which the record says 299" in refused(
        record(tmp_path, "m/2 3 500 599", "s1 300", "s2 299")
    )
    assert "s2.hea: a segment of the leads I, II of I, II, V1" in refused(
        record(tmp_path, "m/2 3 500 600", "s1 300", "s2 300")
    )
    record(tmp_path, "n/1 3 500 300", "s1 300", name="n")
    assert "'n' has segments of its own" in refused(record(tmp_path, "m/2 3 500 600", "s1 300", "n 300"))
    assert "none.hea: no such header file" in refused(record(tmp_path, "m/2 3 500 600", "s1 300", "none 300"))


# files of another kind


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


# checksums and first values


@pytest.mark.parametrize("storage", ["16", "24", "32", "80", "212", "516"])
def test_checksums_of_every_format_pass_as_written_and_flag_a_changed_lead(tmp_path: Path, storage: str) -> None:
    counts = COUNTS // (20 if storage == "80" else 1)
    path = wrsamp(tmp_path, storage, d_signal=counts.T)
    assert not read_wfdb(path).flags
    other = counts.copy()
    other[1, 300] += 4
    header = (tmp_path / "r.hea").read_bytes()
    wrsamp(tmp_path, storage, d_signal=other.T)
    (tmp_path / "r.hea").write_bytes(header)
    assert read_wfdb(path).flags == {"checksum": (1,)}


@pytest.mark.parametrize("form", ["frames", "skew", "segments", "differences"])
def test_checksums_are_compared_in_every_form(tmp_path: Path, form: str) -> None:
    def made(change: int) -> WfdbSignal:
        counts = COUNTS // 8
        sums = [(int(row[0]), int(row.sum()) + change * (k == 2)) for k, row in enumerate(counts)]
        if form == "frames":
            frames = np.concatenate([lead.reshape(-1, 2) for lead in counts], axis=1)
            return read_wfdb(write(tmp_path, frames.T, "16x2", line="r 3 250 300", checks=sums))
        if form == "skew":
            return read_wfdb(write(tmp_path, counts, ["16", "16:2", "16"], checks=sums))
        if form == "differences":
            steps = np.diff(counts, axis=1, prepend=counts[:, :1])
            assert np.abs(steps).max() < 128
            return read_wfdb(write(tmp_path, steps.T.astype("i1").tobytes(), "8", checks=sums))
        segment(tmp_path, "s1", counts, checks=sums)
        segment(
            tmp_path,
            "s2",
            counts[::-1],
            leads=LEADS[::-1],
            checks=[(int(row[0]), int(row.sum())) for row in counts[::-1]],
        )
        return read_wfdb(record(tmp_path, "m/2 3 500 1200", "s1 600", "s2 600"))

    assert "checksum" not in made(0).flags
    assert made(1).flags["checksum"] == (2,)


def test_first_values_tell_a_file_of_another_record_where_there_are_no_checksums(tmp_path: Path) -> None:
    firsts = [(int(row[0]), 0) for row in COUNTS]
    assert not read_wfdb(write(tmp_path, COUNTS, checks=firsts)).flags
    wrong = [(first + 1, 0) for first, _ in firsts]
    assert read_wfdb(write(tmp_path, COUNTS, checks=wrong)).flags == {"checksum": (0, 1, 2)}
    longer = np.concatenate([COUNTS[:, ::-1], COUNTS[:, :100]], axis=1)
    assert "differ (lead" in refused(write(tmp_path, longer, line="r 3 500 600", checks=firsts))


# headers


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


# claims, pipes, and whatever else bytes can cause


NINES = "9" * 4300


@pytest.mark.parametrize(
    "header",
    [
        f"r 3 500 {NINES}\n" + "r.dat 16 200/mV 16 0 0 0 0 I\n" * 3,
        f"r {NINES} 500 5\n",
        f"r 1 {NINES} 5\nr.dat 16\n",
        f"r 1 500 10\nr.dat 16+{NINES} 200/mV\n",
        f"r 1 500 {NINES}\nr.dat 212 200/mV\n",
        f"r 1 500 10\nr.dat 16x{NINES} 200/mV\n",
        f"r 1 500 10\nr.dat 16:{NINES} 200/mV\n",
        f"r 1 500 10\nr.dat {NINES} 200/mV\n",
        f"r 1 500 10\nr.dat 16 200({NINES})/mV\n",
        f"r 1 500 10\nr.dat 16 {NINES}/mV 16 0 0 0 0 I\n",
        f"r 1 500 10\nr.dat 16 200/mV 12 {NINES}\n",
        f"r/{NINES} 1 500 10\ns 10\n",
        f"r/1 1 500 10\ns {NINES}\n",
        "r 1 500 999999999999\nr.dat 16 200/mV\n",
        "r/2 1 500 300000600\ns 600\n~ 300000000\n",
        "r 2 500 300000000\n~ 0 200/mV 16 0 0 0 0 I\n~ 0 200/mV 16 0 0 0 0 II\n",
        "r 1 500 300000000\nr.dat 516 200/mV\n",
        "r 100000 500 1\n" + "r.dat 16 200/mV\n" * 100000,
    ],
)
def test_numbers_without_end_and_claims_without_data_are_rejected_before_memory_is_taken(
    tmp_path: Path, header: str
) -> None:
    import tracemalloc

    (tmp_path / "r.dat").write_bytes(bytes(1200))
    write(tmp_path, COUNTS[:1], name="s", leads=("I",))
    (tmp_path / "r.hea").write_text(header)
    tracemalloc.start()
    message = refused(tmp_path / "r")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20 and len(message) < 700


def test_what_no_check_foresees_is_still_a_rejection(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "r.mat", {"val": COUNTS.astype("f8")}, format="4")
    head = bytearray((tmp_path / "r.mat").read_bytes()[:24])
    head[8:12] = (5_000_000).to_bytes(4, "little")  # columns
    write(tmp_path, bytes(head), "16+24", file="r.mat", line="r 3 500 10")
    os.truncate(tmp_path / "r.mat", 24 + 3 * 5_000_000 * 8)  # a hole, of which no more is read than a record takes
    assert "bad-format" in refused(tmp_path / "r")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("suffix", [".hea", ".dat"])
def test_a_pipe_in_the_place_of_a_file_is_rejected_at_once(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, COUNTS)
    path.with_suffix(suffix).unlink()
    os.mkfifo(path.with_suffix(suffix))
    assert "not a plain file" in refused(path)
    path.with_suffix(suffix).unlink()
    path.with_suffix(suffix).mkdir()
    assert "r" + suffix in refused(path)


@pytest.mark.parametrize("form", ["frames", "segments", "flac", "212", "level 4"])
def test_changed_bytes_in_any_form_give_a_signal_or_a_rejection_and_nothing_else(tmp_path: Path, form: str) -> None:
    if form == "segments":
        segment(tmp_path, "s1", COUNTS[:, :300])
        segment(tmp_path, "s2", COUNTS[::-1, 300:], leads=LEADS[::-1])
        path = record(tmp_path, "m/3 3 500 700", "s1 300", "~ 100", "s2 300")
    elif form == "frames":
        frames = np.concatenate([COUNTS[0].reshape(-1, 2), COUNTS[1, ::2, None], COUNTS[2, ::2, None]], axis=1)
        path = write(tmp_path, frames.T, ["16x2", "16:3", "16"], line="r 3 250 300")
    elif form == "level 4":
        scipy.io.savemat(tmp_path / "r.mat", {"val": COUNTS.astype("i4")}, format="4")
        path = write(tmp_path, (tmp_path / "r.mat").read_bytes(), "16+24", file="r.mat")
    else:
        path = wrsamp(tmp_path, "516" if form == "flac" else form, d_signal=COUNTS.T)
    read_wfdb(path)
    rng = random.Random(form)
    files = {file: file.read_bytes() for file in sorted(tmp_path.iterdir())}
    reasons: list[str] = []
    for _ in range(150):
        file = rng.choice(list(files))
        data = bytearray(files[file])
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(min(len(data), 400))
            data[at : at + rng.randint(0, 2)] = rng.choice(
                [b"", b"9" * 20, b"/", b"x0", b":7", b"\xff", b"~", b" ", b"\n"]
            )
        file.write_bytes(bytes(data))
        try:
            signal = read_wfdb(path)
            assert signal.counts.dtype == np.int16 and len(signal.counts) == len(signal.gain)
            assert np.isfinite(millivolts(signal)).all() and signal.counts.min() > -32768
        except RecordRejected as error:
            reasons.append(error.detail)
        file.write_bytes(files[file])
    assert len(reasons) > 20
    assert [reason for reason in reasons if "cannot be read: " in reason] == []  # all known by name, none by accident
