"""The reader gives what the wfdb package gives, in every form that both read, and bad files are turned away by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.wfdb.header import parse_header
from cardialign.data_shards.reading.wfdb.reader import read_wfdb, standard_leads
from cardialign.data_shards.reading.wfdb.samples import INVALID_16
from cardialign.data_shards.record import STANDARD_LEADS
from tests.support.wfdb_files import MIMIC_LEADS, ecg_counts, write_record


def assert_equals_wfdb(path: Path, tolerance: float = 0.0) -> None:
    """Millivolts, names, rate and comments as wfdb gives them; where wfdb says NaN there is 0 and a flag."""
    ours, theirs = read_wfdb(path), wfdb.rdrecord(str(path), smooth_frames=False)
    scale = np.array([{"mV": 1.0, "uV": 1e-3, "V": 1e3}[unit] for unit in theirs.units])
    expected = np.array(theirs.e_p_signal) * scale[:, None]
    invalid = np.isnan(expected)
    np.testing.assert_allclose(
        ours.counts / ours.gain[:, None], np.where(invalid, 0, expected), rtol=1e-12, atol=tolerance
    )
    assert ours.flags.get("non-finite", ()) == tuple(np.flatnonzero(invalid.any(axis=1)))
    assert list(ours.lead_names) == theirs.sig_name
    assert ours.sampling_rate == theirs.fs * theirs.samps_per_frame[0]
    assert [comment.strip() for comment in ours.comments] == theirs.comments


@pytest.mark.parametrize(
    ("gains", "storage", "prefix"),
    [
        ("200.0(0)/mV", "16", b""),
        ("1000/mV", "16", b""),
        ("4880(0)/mV", "16", b""),
        ([f"{100 + 37 * k}.5({k - 6})/mV" for k in range(12)], "16", b""),
        ("0.2(0)/uV", "16", b""),
        ("1000", "16", b""),
        ("1000/mV", "16+24", b"MATLAB v4 header, 24 b  "),
    ],
    ids=[
        "mimic-iv-ecg",
        "challenge",
        "fine gain",
        "gain and baseline per lead",
        "microvolts",
        "no unit",
        "mat with offset",
    ],
)
def test_format_16_equals_wfdb(tmp_path, gains, storage, prefix):
    counts = ecg_counts()
    counts[3, 10:20] = INVALID_16
    suffix = ".mat" if prefix else ".dat"
    path = write_record(
        tmp_path / "a",
        counts,
        gains=gains,
        storage=storage,
        prefix=prefix,
        suffix=suffix,
        leads=MIMIC_LEADS,
        comments=["<age>: 61", "Dx:"],
    )
    assert_equals_wfdb(path)


@settings(max_examples=25, deadline=None)
@given(
    npst.arrays(np.int16, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)),
    st.integers(-40000, 40000),
)
def test_any_int16_signal_with_any_baseline_keeps_its_peaks(tmp_path_factory, counts, baseline):
    names = [f"lead {k}" for k in range(len(counts))]
    path = write_record(tmp_path_factory.mktemp("any") / "r", counts, leads=names, gains=f"200({baseline})/mV")
    ours = read_wfdb(path)
    wide = counts.astype(np.int64) - baseline
    expected = np.where(counts == INVALID_16, 0, wide)
    steps = 200 / ours.gain  # counts of the file in one count of ours
    read = ours.counts * steps[:, None]
    assert (np.abs(read - expected).max(axis=1) <= np.where(steps > 1, steps / 2, 0)).all()
    assert (np.abs(expected).max(axis=1)[steps > 1] > 32767).all()  # what fits is exact
    assert "clipped" not in ours.flags
    if "non-finite" not in ours.flags and (steps == 1).all():
        assert_equals_wfdb(path, tolerance=1e-12)


@pytest.mark.parametrize("storage", ["212", "24", "32", "80", "61", "16x2", "16:3"])
def test_other_forms_equal_wfdb(tmp_path, storage):
    counts = ecg_counts(100 if storage == "16:3" else 200, leads=2, gain=40)
    path = tmp_path / "r"
    if storage in ("212", "24", "32", "80"):
        wfdb.wrsamp(
            "r",
            fs=250,
            units=["mV", "mV"],
            sig_name=["I", "II"],
            d_signal=counts.T.astype(np.int64),
            fmt=[storage] * 2,
            adc_gain=[40.0, 50.0],
            baseline=[0, 3],
            write_dir=str(tmp_path),
        )
    else:
        write_record(
            path,
            counts,
            leads=("I", "II"),
            storage=storage,
            rate="250",
            gains="40(0)/mV",
            record_line=f"r 2 250 {200 if storage == '61' else 100}",
        )
    assert_equals_wfdb(path, tolerance=1e-12)


def test_wide_counts_are_scaled_into_16_bits_by_a_power_of_two(tmp_path):
    wide = np.array([[0, 1_000_000, -3_000_000, 5], [1, 2, 3, 4]])
    wfdb.wrsamp(
        "r",
        500,
        ["mV", "mV"],
        ["I", "II"],
        d_signal=wide.T,
        fmt=["24", "24"],
        adc_gain=[1e6, 1e3],
        baseline=[0, 0],
        write_dir=str(tmp_path),
    )
    signal = read_wfdb(tmp_path / "r")
    np.testing.assert_array_equal(signal.counts[1], wide[1])
    assert 1e6 / signal.gain[0] == 128
    np.testing.assert_allclose(signal.counts[0] / signal.gain[0], wide[0] / 1e6, atol=0.5 / signal.gain[0])


def test_segments_of_different_gain_are_joined_in_millivolts(tmp_path):
    counts = ecg_counts(100, leads=2)
    write_record(tmp_path / "s1", counts, leads=("I", "II"), gains="200(0)/mV")
    write_record(tmp_path / "s2", 2 * counts, leads=("I", "II"), gains="400(0)/mV")
    (tmp_path / "m.hea").write_text("m/2 2 500 200\ns1 100\ns2 100\n")
    signal = read_wfdb(tmp_path / "m")
    np.testing.assert_array_equal(signal.counts, np.concatenate([counts, counts], axis=1))
    np.testing.assert_array_equal(signal.gain, [200, 200])


def test_headers_that_make_wfdb_fail_or_guess_are_read(tmp_path):
    counts = ecg_counts(60)
    challenge = write_record(
        tmp_path / "E00001",
        counts,
        gains="1000/mV",
        record_line="E00001 12 500 60 05-May-2020 14:50:55",
        comments=["Age: NaN"],
    )
    np.testing.assert_array_equal(read_wfdb(challenge).counts, counts)
    assert read_wfdb(challenge).comments == ("Age: NaN",)
    bare = tmp_path / "bare"
    bare.with_suffix(".hea").write_bytes(b"bare 1\nbare.dat 16\n# \xb5V in Latin-1\n")
    bare.with_suffix(".dat").write_bytes(np.arange(7, dtype="<i2").tobytes())
    signal = read_wfdb(bare)
    assert (signal.sampling_rate, signal.gain[0], signal.lead_names) == (250.0, 200.0, ("",))  # WFDB's defaults
    np.testing.assert_array_equal(signal.counts[0], np.arange(7))


def test_an_absent_baseline_is_the_adc_zero():
    header = parse_header("r 1 500 10\nr.dat 16 200/mV 12 1024 0 0 0 II\n")
    assert header.signals[0].baseline == 1024


def test_leads_are_reordered_by_name_in_any_case(tmp_path):
    counts = ecg_counts()
    signal = read_wfdb(write_record(tmp_path / "a", counts, leads=[name.upper() for name in MIMIC_LEADS]))
    leads = standard_leads(signal, "a")
    for row, name in enumerate(STANDARD_LEADS):
        np.testing.assert_array_equal(leads.counts[row], counts[MIMIC_LEADS.index(name)])
    assert leads.lead_mask.all()


def test_missing_leads_are_masked_and_other_channels_named(tmp_path):
    counts = ecg_counts(300, leads=3)
    counts[2, 5] = INVALID_16
    leads = standard_leads(read_wfdb(write_record(tmp_path / "a", counts, leads=("Lead V2", "resp", "i"))), "a")
    assert list(np.flatnonzero(leads.lead_mask)) == [0, 7]
    np.testing.assert_array_equal(leads.counts[7], counts[0])
    assert not leads.counts[~leads.lead_mask].any()
    assert leads.other_channels == ("resp",)
    assert leads.flags == {"non-finite": ("I",)}


def rejected(path: Path) -> RecordRejected:
    with pytest.raises(RecordRejected) as caught:
        standard_leads(read_wfdb(path), str(path))
    return caught.value


@pytest.mark.parametrize("named", ["b", "a2", "records/b", "a/1"])
def test_a_record_line_that_names_another_record_is_refused_as_wfdb_does(tmp_path, named):
    """WFDB's C library: "record name in record a header is incorrect"."""
    counts = ecg_counts(600)
    write_record(tmp_path / "a", counts, record_line=f"{named} 12 500 600")
    with pytest.raises(RecordRejected, match=r"unreadable-header.*the record line is that of .*the file that of 'a'"):
        read_wfdb(tmp_path / "a")


def test_a_segment_whose_header_is_of_another_record_is_refused(tmp_path):
    for part, named in (("s1", "s1"), ("s2", "s9")):
        write_record(tmp_path / part, ecg_counts(600), record_line=f"{named} 12 500 600")
    (tmp_path / "m.hea").write_text("m/2 12 500 1200\ns1 600\ns2 600\n")
    with pytest.raises(RecordRejected, match="the record line is that of 's9', the file that of 's2'"):
        read_wfdb(tmp_path / "m")


@pytest.mark.parametrize("named", ["1-2.b", "1_2_B", "records/1_2_b", "1.2.b.mat", "C:\\ecg\\1_2_b.hea"])
def test_folders_capitals_and_marks_in_a_record_line_make_no_other_record(tmp_path, named):
    counts = ecg_counts(600)
    write_record(tmp_path / "1.2.b", counts, record_line=f"{named} 12 500 600")
    np.testing.assert_array_equal(read_wfdb(tmp_path / "1.2.b").counts, counts)


def test_a_missing_file_is_named(tmp_path):
    assert rejected(tmp_path / "none").reason == "missing-file"
    path = write_record(tmp_path / "a", ecg_counts())
    path.with_suffix(".dat").unlink()
    error = rejected(path)
    assert error.reason == "missing-file"
    assert "a.dat" in error.detail


@pytest.mark.parametrize("storage", ["16", "212"])
def test_a_truncated_signal_names_file_and_sizes(tmp_path, storage):
    path = write_record(tmp_path / "a", ecg_counts(1000), storage=storage)
    dat = path.with_suffix(".dat")
    dat.write_bytes(dat.read_bytes()[:-9001])
    error = rejected(path)
    assert error.reason == "truncated-signal"
    for part in ("a.dat", "14999 bytes", "24000" if storage == "16" else "18000"):
        assert part in error.detail


@pytest.mark.parametrize(
    "header",
    [
        "",
        "# only a comment\n",
        "a twelve 500 5000\n",
        "a 12 0 5000\n",
        "a 12 500 5000\na.dat 16 200/mV 16 0 0 0 0 I\n",
        "a 1 500 10\na.dat sixteen 200/mV\n",
    ],
)
def test_an_unreadable_header_is_rejected(tmp_path, header):
    (tmp_path / "a.hea").write_text(header)
    error = rejected(tmp_path / "a")
    assert error.reason == "unreadable-header"
    assert "a.hea" in error.detail


@pytest.mark.parametrize(
    "gain", ["nan(0)/mV", "0(0)/mV", "-200(0)/mV", "inf/mV", "1e-330/mV", "1e90/mV", "200(0)/mmHg"]
)
def test_a_gain_that_is_no_gain_is_rejected(tmp_path, gain):
    error = rejected(write_record(tmp_path / "a", ecg_counts(), gains=["200(0)/mV"] * 11 + [gain]))
    assert error.reason == "bad-gain"
    assert "'V6'" in error.detail


@pytest.mark.parametrize("leads", [["ch1", "ch2"], ["II", "ii"]])
def test_unknown_or_doubled_leads_are_rejected(tmp_path, leads):
    error = rejected(write_record(tmp_path / "a", ecg_counts(leads=2), leads=leads))
    assert error.reason == "unknown-leads"
    assert leads[1] in error.detail


def test_a_record_without_samples_is_rejected(tmp_path):
    path = write_record(tmp_path / "a", ecg_counts(), record_line="a 12 500")
    path.with_suffix(".dat").write_bytes(b"")
    assert rejected(path).reason == "no-signal"


def test_an_unknown_format_is_rejected(tmp_path):
    assert rejected(write_record(tmp_path / "a", ecg_counts(), storage="77")).reason == "bad-format"


def test_a_signal_file_outside_the_folder_is_not_followed(tmp_path):
    path = write_record(tmp_path / "sub" / "a", ecg_counts(leads=1), leads=("I",))
    (tmp_path / "a.dat").write_bytes(path.with_suffix(".dat").read_bytes())
    path.with_suffix(".hea").write_text("a 1 500 1000\n../a.dat 16 200/mV 16 0 0 0 0 I\n")
    assert rejected(path).reason == "unreadable-header"


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_header_with_random_bytes_changed_gives_a_signal_or_a_rejection_and_nothing_else(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    path = write_record(folder / "a", ecg_counts(40, leads=3), leads=("I", "II", "V1"), gains="200.0(0)/mV")
    header = bytearray(path.with_suffix(".hea").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(header) - 1))
        header[position : position + data.draw(st.integers(0, 2))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"9" * 25, b"e-330", b"nan", b"/", b"(9)"])
        )
    path.with_suffix(".hea").write_bytes(bytes(header))
    try:
        signal = read_wfdb(path)
    except RecordRejected:
        return
    assert signal.counts.dtype == np.int16
    assert len(signal.counts) == len(signal.lead_names) == len(signal.gain)
    assert np.isfinite(signal.counts / signal.gain[:, None].astype(np.float32)).all()


def test_a_rejection_survives_the_way_out_of_a_worker_process():
    error = pickle.loads(pickle.dumps(RecordRejected("bad-gain", "file x")))
    assert (error.reason, error.detail, str(error)) == ("bad-gain", "file x", "bad-gain: file x")


@pytest.mark.parametrize(
    "folder", ["ptb-xl/records500/00000", "ptb-xl/records100/00000", "code15", "cpsc2018", "chapman-shaoxing-ningbo"]
)
def test_real_recordings_read_as_wfdb_reads_them(real_data, folder):
    headers = sorted((real_data / folder).glob("*.hea"))
    assert headers
    for header in headers[:: max(1, len(headers) // 12)]:
        assert_equals_wfdb(header.with_suffix(""), tolerance=1e-12)
