"""Arrays and text tables: what is claimed is judged before memory is taken, only what is asked for is read, and what
may be read in two ways is refused with both."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tracemalloc
import zipfile
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


def head(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    made = io.BytesIO()
    np.lib.format.write_array_header_1_0(made, {"descr": descr, "fortran_order": False, "shape": shape})
    return made.getvalue()


def only(root: Path, **options: object) -> EcgRecord:
    source = open_source("arrays", root, **options)
    (entry,) = source.entries()
    return source.read(entry)


def test_of_an_npz_only_what_is_asked_for_takes_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("signal.npy", head((12, 1000)) + MILLIVOLTS.tobytes())
        with archive.open("other.npy", "w") as file:
            file.write(head((1 << 25,)))
            for _ in range(256):
                file.write(bytes(1 << 20))
    code = (
        "import sys\nfrom pathlib import Path\nfrom cardialign.data_shards.benchmarks.process import peak_memory\n"
        "from cardialign.data_shards.reading.arrays import read_array\n"
        "before = peak_memory()\nread_array(Path(sys.argv[1]))\nprint(peak_memory() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.npz"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32 << 20, "the array that nobody asked for has 256 MiB"
    np.testing.assert_array_equal(read_array(tmp_path / "a.npz").values, MILLIVOLTS)


@pytest.mark.parametrize("shape", [(12, 10**12), (12, 10**8), (12, 10**30), (-12, -1000), (12, 1001)])
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_an_array_that_claims_more_than_there_is_or_can_be_is_refused_before_it_takes_memory(
    tmp_path: Path, shape: tuple[int, int], kind: str
) -> None:
    content = head(shape) + MILLIVOLTS.tobytes()
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("signal.npy", content)
    tracemalloc.start()  # knows what numpy takes, too; the peak of this process may lie higher since an earlier test
    try:
        with pytest.raises(RecordRejected, match="bad-format"):
            read_array(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", signal=MILLIVOLTS, notes=np.array([{}], dtype=object))
    with pytest.raises(RecordRejected, match="an array of objects"):
        read_array(tmp_path / "a.npy")
    assert read_array(tmp_path / "b.npz").values.shape == (12, 1000), "beside the signal they are in nobody's way"


def test_a_pipe_in_the_place_of_an_array_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(RecordRejected, match="not a file"):
        read_array(tmp_path / "a.npy")


# what a file says, and an option says otherwise


@pytest.mark.parametrize("name", ["fs", "sampling_rate", "Fs", "sfreq", "sample_rate"])
def test_a_rate_that_an_npz_contradicts_is_refused_with_both(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, **{name: 250})
    assert only(tmp_path).sampling_rate == only(tmp_path, sampling_rate="250").sampling_rate == 250
    with pytest.raises(RecordRejected, match=f"(?i){name} says 250, the option sampling_rate says 500"):
        only(tmp_path, sampling_rate=500)


@pytest.mark.parametrize(
    ("name", "step"), [("dt", 0.004), ("dt", 4), ("dt_ms", 4.0), ("samplingInterval", 4000), ("sample_period_s", 0.004)]
)
def test_the_time_between_two_samples_is_a_rate_that_no_option_may_contradict(
    tmp_path: Path, name: str, step: float
) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, **{name: step})
    assert only(tmp_path, sampling_rate=250).sampling_rate == 250
    with pytest.raises(RecordRejected, match=r"its times are .* apart, which is .*250.* Hz, not the 500 Hz"):
        only(tmp_path, sampling_rate=500)
    if name.endswith(("_s", "_ms")):
        assert only(tmp_path).sampling_rate == 250
    else:
        with pytest.raises(RecordRejected, match="does not say its sampling rate"):
            only(tmp_path)


@pytest.mark.parametrize(
    ("spelt", "name"),
    [("samplingRate", "sampling_rate"), ("sampling_rate_hz", "sampling_rate"), ("SamplingFreq", "sampling_freq"),
     ("fs_hz", "fs"), ("FS", "fs"), ("sampleRate", "sample_rate"), ("f_s", "fs"), ("sr", "sr"), ("Hz", "hz")],
)  # fmt: skip
def test_a_rate_is_found_however_its_name_is_spelt(tmp_path: Path, spelt: str, name: str) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, **{spelt: 250})
    assert only(tmp_path).sampling_rate == 250
    with pytest.raises(RecordRejected, match=f"{name} says 250, the option sampling_rate says 500"):
        only(tmp_path, sampling_rate=500)


@pytest.mark.parametrize("name", ["lead", "names", "columns", "order", "signalNames", "LeadNames", "whatever"])
def test_names_of_leads_count_under_any_name(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS[::-1], fs=500, **{name: np.array(NAMES[::-1])})
    np.testing.assert_allclose(only(tmp_path).millivolts(), MILLIVOLTS, atol=6e-4)


def test_every_lead_has_the_unit_that_the_file_gives_it(tmp_path: Path) -> None:
    factor = np.array([1000.0] * 6 + [1.0] * 5 + [0.001])[:, np.newaxis]
    units = np.array(["uV"] * 6 + ["mV"] * 5 + ["V"])
    np.savez(tmp_path / "a.npz", signal=(MILLIVOLTS * factor).T, fs=500, units=units)
    np.testing.assert_allclose(only(tmp_path).millivolts(), MILLIVOLTS, atol=6e-4)
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, fs=500, units=units[:7])
    with pytest.raises(RecordRejected, match="7 units for"):
        only(tmp_path)


def test_counts_that_a_file_tells_by_a_gain_or_a_baseline_are_never_taken_for_millivolts(tmp_path: Path) -> None:
    counts = ecg_counts(gain=200)
    np.savez(tmp_path / "a.npz", signal=counts, fs=500, adc_gain=200)
    with pytest.raises(RecordRejected, match="whole numbers and a gain of 200: set the options unit"):
        only(tmp_path)
    np.testing.assert_array_equal(only(tmp_path, unit="counts", gain=200).gain, 200)
    for baseline in (100, np.arange(12)):
        np.savez(tmp_path / "a.npz", signal=counts, fs=500, baseline=baseline)
        with pytest.raises(RecordRejected, match="its baseline is not 0"):
            only(tmp_path, unit="counts", gain=200)
    np.savez(tmp_path / "a.npz", signal=counts, fs=500, gain=np.arange(200, 212))
    with pytest.raises(RecordRejected, match="gain says 200 to 211, expected one for all"):
        only(tmp_path, unit="counts", gain=200)


@pytest.mark.parametrize("name", ["scale", "resolution", "uV_per_LSB", "lsb"])
def test_whole_numbers_beside_what_one_of_them_is_worth_are_no_millivolts(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "a.npz", signal=ecg_counts(gain=200), fs=500, **{name: 5.0})
    with pytest.raises(RecordRejected, match=f"(?i)whole numbers and a {name}: set the options unit .counts. and gain"):
        only(tmp_path)
    np.testing.assert_array_equal(only(tmp_path, unit="counts", gain=200).gain, 200)
    np.savez(tmp_path / "b.npz", signal=MILLIVOLTS, fs=500, **{name: 5.0})
    (tmp_path / "a.npz").unlink()
    np.testing.assert_array_equal(only(tmp_path).gain, 1000)


@pytest.mark.parametrize("rate", ["250 Hz", "250Hz", [250] * 12, np.float32(250), b"250"])
def test_a_rate_in_any_form_is_a_rate(tmp_path: Path, rate: object) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, fs=rate)
    assert only(tmp_path).sampling_rate == 250
    with pytest.raises(RecordRejected, match="fs says 250"):
        only(tmp_path, sampling_rate=500)


def test_two_rates_in_one_file_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, fs=250, sampling_rate=500)
    with pytest.raises(RecordRejected, match="fs says 250, sampling_rate says 500"):
        only(tmp_path)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("uV", 1000), ("\u00b5V", 1000), ("mV", 1), ("V", 0.001), ("microvolts", 1000), ("Millivolt", 1),
     ("micro-volts", 1000), ("uVolt", 1000), ("MV", 1), ("nV", 1e6), ("volts", 0.001)],
)  # fmt: skip
def test_the_unit_of_a_file_counts_and_an_option_that_contradicts_it_is_refused(
    tmp_path: Path, unit: str, factor: float
) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS * factor, fs=500, unit=unit)
    np.testing.assert_allclose(only(tmp_path).millivolts(), MILLIVOLTS, atol=6e-4)
    other = "V" if factor != 0.001 else "mV"
    assert only(tmp_path, unit=unit).samples == 1000
    with pytest.raises(RecordRejected, match=f"the option unit says {other}"):
        only(tmp_path, unit=other)


def test_the_leads_of_a_file_count_and_an_option_that_contradicts_them_is_refused(tmp_path: Path) -> None:
    swapped = [*NAMES[:4], "aVF", "aVL", *NAMES[6:]]
    rows = [NAMES.index(name) for name in swapped]
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS[rows], fs=500, leads=np.array(swapped))
    np.testing.assert_allclose(only(tmp_path).millivolts(), MILLIVOLTS, atol=6e-4)
    with pytest.raises(RecordRejected, match=r"has the leads I, II.*aVF, aVL.*the option leads says I, II"):
        only(tmp_path, leads=",".join(NAMES))


def test_the_gain_of_counts_that_a_file_contradicts_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", signal=ecg_counts(gain=200), fs=500, unit="counts", adc_gain=200)
    np.testing.assert_array_equal(only(tmp_path, unit="counts", gain=200).gain, 200)
    with pytest.raises(RecordRejected, match="adc_gain says 200, the option gain says 1000"):
        only(tmp_path, unit="counts", gain=1000)


def test_counts_take_the_gain_of_their_file_per_its_unit_one_or_one_for_each_lead(tmp_path: Path) -> None:
    counts = ecg_counts(gain=200)
    truth = counts / 200
    for told in (
        {"adc_gain": 200},
        {"gain": [200] * 12},
        {"gain": 0.2, "units": "uV"},
        {"gain": 200, "unit": "counts"},
    ):
        np.savez(tmp_path / "a.npz", signal=counts, fs=500, **told)
        record = only(tmp_path, unit="counts")
        np.testing.assert_array_equal(record.counts, counts)
        np.testing.assert_allclose(record.millivolts(), truth, rtol=1e-6)
    gains = np.arange(200, 212)
    np.savez(tmp_path / "a.npz", signal=counts.T, fs=500, gain=gains, unit="ADU")
    np.testing.assert_allclose(only(tmp_path).millivolts(), counts / gains[:, np.newaxis], rtol=1e-6)
    for told in ({}, {"gain": [200] * 7}, {"gain": 0}, {"gain": -1}, {"gain": 200, "adc_gain": 100}):
        np.savez(tmp_path / "a.npz", signal=counts, fs=500, **told)
        with pytest.raises(RecordRejected, match=r"bad-format.*(gains|does not say how many are 1 mV)"):
            only(tmp_path, unit="counts")


def test_whole_numbers_with_a_gain_and_a_unit_are_counts_not_voltages(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", signal=ecg_counts(gain=200), fs=500, adc_gain=200, units=["mV"] * 12)
    with pytest.raises(RecordRejected, match="whole numbers and a gain of 200"):
        only(tmp_path)
    np.testing.assert_array_equal(only(tmp_path, unit="counts").gain, 200)


def timed(unit: str, per_second: float, rate: float = 250) -> str:
    times = np.arange(1000) / rate * per_second
    rows = (",".join(f"{value:.6g}" for value in (time, *row)) for time, row in zip(times, MILLIVOLTS.T, strict=True))
    return "\n".join([",".join([unit, *NAMES]), *rows])


@pytest.mark.parametrize(
    ("unit", "per_second"), [("time", 1), ("Time (s)", 1), ("t", 1e3), ("time_ms", 1e3), ("Time [us]", 1e6)]
)
def test_times_in_a_csv_that_contradict_the_rate_are_refused_with_both(
    tmp_path: Path, unit: str, per_second: float
) -> None:
    (tmp_path / "a.csv").write_text(timed(unit, per_second))
    np.testing.assert_allclose(only(tmp_path, sampling_rate=250).millivolts(), MILLIVOLTS, atol=6e-4)
    with pytest.raises(RecordRejected, match=r"250.* Hz, not the 500 Hz of the option sampling_rate"):
        only(tmp_path, sampling_rate=500)


def test_numbers_of_samples_are_no_times(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(timed("t", 1, rate=1))
    assert only(tmp_path, sampling_rate=500).sampling_rate == 500


# the dialect of a text table


def table(separator: str, decimal: str = ".", names: bool = True, zeros: int = 0, quote: str = "") -> str:
    rows = MILLIVOLTS.T.copy()
    rows[:zeros] = 0
    lines = [separator.join(NAMES)] if names else []
    for row in rows:
        words = ["0" if value == 0 else f"{value:.3f}".replace(".", decimal) for value in row]
        lines.append(separator.join(f"{quote}{word}{quote}" for word in words))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("zeros", [0, 1, 999])
@pytest.mark.parametrize(
    ("separator", "decimal", "quote"),
    [(";", ",", ""), ("\t", ",", ""), (" ", ",", ""), ("|", ",", ""), (";", ".", ""), (",", ",", '"'), (",", ".", '"'),
     (";", ",", '"')],
)  # fmt: skip
def test_decimal_marks_are_told_from_enough_lines(
    tmp_path: Path, separator: str, decimal: str, quote: str, zeros: int, names: bool
) -> None:
    (tmp_path / "a.csv").write_text(table(separator, decimal, names, zeros, quote))
    wanted = MILLIVOLTS.copy()
    wanted[:, :zeros] = 0
    np.testing.assert_allclose(read_array(tmp_path / "a.csv").values.T, np.round(wanted, 3), atol=1e-9)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a;b\n1.234,5;0,5\n", "both decimal marks, '1.234,5'"),
        ("a;b\n1,5;0,5\n0.5;1.5\n", "both decimal marks, '0.5' and '1,5'"),
        ("0,001,0,002\n0,001,0,003\n", "fields such as '001' between commas look like decimals"),
        ("a,b\n1,5,2,5\n1,5,2,5\n", "rows of 4 values under 2 names, separated by ','; are its decimal marks commas"),
        ('"' + "1," * 100_000, "fields in quotes"),
        ("I,II\nmV,mmHg\n1,2\n", "row 1 of column I holds 'mV'"),
        ("I,II\n1," + "9" * 5000 + "x\n", "holds '99999"),
        (",".join(["I"] * 5000) + "\n1\n", "a first line of 5000 names"),
    ],
)
def test_what_may_be_read_in_two_ways_is_refused_with_what_was_seen(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(RecordRejected, match="bad-format") as caught:
        read_array(tmp_path / "a.csv")
    assert says in caught.value.detail


def test_a_row_per_lead_of_thousands_of_samples_is_read(tmp_path: Path) -> None:
    wide = np.tile(MILLIVOLTS, (1, 20))
    np.savetxt(tmp_path / "a.csv", wide, delimiter=",", fmt="%.3f")
    np.testing.assert_allclose(read_array(tmp_path / "a.csv").values, wide, atol=1e-9)
    (tmp_path / "a.csv").write_text((tmp_path / "a.csv").read_text() + "1,2\n")
    with pytest.raises(RecordRejected, match="its last row has 2 values, its first 20000"):
        read_array(tmp_path / "a.csv")


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("wide", [False, True])
def test_a_first_line_that_numbers_the_columns_is_no_sample(
    tmp_path: Path, wide: bool, first: int, index: bool
) -> None:
    millivolts = np.tile(MILLIVOLTS, (1, 5)).round(3)
    frame = pd.DataFrame(millivolts if wide else millivolts.T)
    frame.columns += first
    frame.to_csv(tmp_path / "a.csv", index=index)
    record = only(tmp_path, sampling_rate=500)
    assert record.samples == 5000
    np.testing.assert_allclose(record.millivolts(), millivolts, atol=6e-4)


def test_a_table_in_utf_16_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(table("\t", ","), encoding="utf-16")
    np.testing.assert_allclose(read_array(tmp_path / "a.csv").values.T, np.round(MILLIVOLTS, 3), atol=1e-9)


@pytest.mark.parametrize("number", ["9" * 400, "9" * 4301, "-" + "9" * 5000, "1e999", "0." + "9" * 5000])
def test_numbers_of_any_length_give_a_value_or_a_reason(tmp_path: Path, number: str) -> None:
    (tmp_path / "a.csv").write_text("I,II\n" + f"0.1,{number}\n" * 3)
    with contextlib.suppress(RecordRejected):
        assert read_array(tmp_path / "a.csv").values.shape == (3, 2)


def test_times_with_their_unit_say_the_rate_and_those_of_an_npz_may_contradict_an_option(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(timed("time_ms", 1e3))
    assert only(tmp_path).sampling_rate == 250
    (tmp_path / "a.csv").write_text(timed("time", 1))
    with pytest.raises(RecordRejected, match="does not say its sampling rate"):
        only(tmp_path)
    (tmp_path / "a.csv").unlink()
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, time_s=np.arange(1000) / 250)
    assert only(tmp_path).sampling_rate == 250
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, t=np.arange(1000) / 250)
    with pytest.raises(RecordRejected, match="not the 500 Hz of the option sampling_rate"):
        only(tmp_path, sampling_rate=500)


def test_a_unit_counts_under_any_name_that_speaks_of_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS * 1000, fs=500, amplitude_unit="uV")
    np.testing.assert_allclose(only(tmp_path).millivolts(), MILLIVOLTS, atol=6e-4)
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS, fs=500, time_unit="s", unit_id="A7")
    np.testing.assert_allclose(only(tmp_path).millivolts(), MILLIVOLTS, atol=6e-4)


@pytest.mark.parametrize(("name", "value"), [("gain", 200), ("baseline", 12)])
def test_whole_numbers_are_counts_whatever_type_holds_them(tmp_path: Path, name: str, value: int) -> None:
    np.savez(tmp_path / "a.npz", signal=ecg_counts(gain=200).astype(float), fs=500, **{name: value})
    with pytest.raises(RecordRejected, match=r"holds whole numbers and a (gain of 200|baseline)"):
        only(tmp_path)
