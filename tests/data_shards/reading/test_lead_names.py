"""What other tools call the twelve leads is read as the lead that it is, inverted where the name says so; what is
another lead (modified, of an EEG) never is, and is named."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import RecordRejected, UsageError
from cardialign.data_shards.reading.wfdb.leads import plain_name, rows_of
from cardialign.data_shards.reading.wfdb.reader import read_wfdb, standard_leads
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord, SignalSpec
from cardialign.data_shards.sources import open_source
from tests.support.wfdb_files import ecg_counts, write_record

COUNTS = ecg_counts(1000, gain=1000)
MILLIVOLTS = COUNTS / 1000


def only(name: str, root: Path, **options: object) -> EcgRecord:
    source = open_source(name, root, **options)
    (entry,) = source.entries()
    return source.read(entry)


@pytest.mark.parametrize(
    "pattern",
    ["{}", "Lead {}", "ECG_{}", "MDC_ECG_LEAD_{}", "ECG Lead {}", "Lead{}", "LEAD_{}", "ekg-{}", "ECG lead_{}", " {} "],
)
def test_a_word_before_the_name_is_no_part_of_it(pattern: str) -> None:
    names = [pattern.format(lead) for lead in STANDARD_LEADS]
    for spelt in (names, [name.upper() for name in names], [name.lower() for name in names]):
        assert rows_of(spelt) == (list(range(12)), [False] * 12)


@pytest.mark.parametrize(
    "name",
    ["MLII", "MCL1", "CM5", "ML2", "V7", "V4R", "III+", "aVR1", "IV", "ECG1", "lead 1", "C7", "X", "Lead", "-", ""],
)
def test_another_lead_is_none_of_the_twelve(name: str) -> None:
    assert rows_of(["I", name])[0] == [0, -1]


def test_chest_electrodes_are_chest_leads_beside_limb_leads_only() -> None:
    chest = [f"C{number}" for number in range(1, 7)]
    assert rows_of([*STANDARD_LEADS[:6], *chest])[0] == list(range(12))
    assert rows_of(["II", "c3"])[0] == [1, 8]
    assert rows_of(chest)[0] == [-1] * 6, "an EEG has electrodes of these names"
    assert rows_of(["ECG II", "C3", "C4", "O1", "O2"])[0] == [1, -1, -1, -1, -1], "so has a polysomnogram"
    assert rows_of(["I", "V1", "C2"])[0] == [0, 6, -1], "a file that has V leads calls something else C2"


def test_an_inverted_lead_is_turned_back_unless_the_lead_itself_is_there(tmp_path: Path) -> None:
    cabrera = ["aVL", "I", "-aVR", "II", "aVF", "III"]
    stored = np.array(
        [COUNTS[STANDARD_LEADS.index(name.lstrip("-"))] * (-1 if name[0] == "-" else 1) for name in cabrera]
    )
    read = standard_leads(read_wfdb(write_record(tmp_path / "r", stored, leads=cabrera, gains="1000/mV")), "r")
    np.testing.assert_array_equal(read.counts[:6], COUNTS[:6])
    assert read.lead_mask.tolist() == [True] * 6 + [False] * 6 and read.other_channels == ()
    names = ["aVR", "-aVR", "I"]
    both = standard_leads(read_wfdb(write_record(tmp_path / "b", COUNTS[[3, 3, 0]], leads=names, gains="1000/mV")), "b")
    np.testing.assert_array_equal(both.counts[[3, 0]], COUNTS[[3, 0]])
    assert both.other_channels == ("-aVR",)


@pytest.mark.parametrize("pattern", ["{} (uV)", "{} [\u00b5V]", "Lead {}_uV"])
def test_a_unit_in_the_name_of_a_lead_must_be_that_of_its_gain(tmp_path: Path, pattern: str) -> None:
    names = [pattern.format(lead) for lead in STANDARD_LEADS]
    path = write_record(tmp_path / "r", COUNTS, leads=names, gains="1/uV")
    read = standard_leads(read_wfdb(path), "r")
    np.testing.assert_array_equal(read.counts / read.gain[:, None], MILLIVOLTS.astype(np.float32))
    assert read.lead_mask.all() and read.other_channels == ()
    for gains in ("1000/mV", "1000"):
        with pytest.raises(RecordRejected, match="V in its name, and mV behind its gain"):
            read_wfdb(write_record(tmp_path / "s", COUNTS, leads=names, gains=gains))


def test_the_lowest_count_of_an_inverted_lead_is_not_cut(tmp_path: Path) -> None:
    stored = np.array([[-32768 + 1, 5, 7], [0, 1, 2]])
    path = write_record(tmp_path / "r", stored, leads=["-aVR", "I"], gains="1000(1)/mV")
    read = standard_leads(read_wfdb(path), "r")
    truth = -wfdb.rdrecord(str(path)).p_signal[:, 0]
    np.testing.assert_allclose(read.counts[3] / read.gain[3], truth, atol=1.1e-3)


def test_channels_that_are_no_lead_are_named_where_leads_are_missing_and_taken_where_an_option_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("100", "101"):
        write_record(tmp_path / "mitdb" / name, COUNTS[[1, 10]], leads=["MLII", "V5"], gains="1000/mV")
    write_record(tmp_path / "mitdb" / "whole", COUNTS, gains="1000/mV")
    with caplog.at_level(logging.WARNING):
        build_shards(open_source("wfdb", tmp_path / "mitdb"), tmp_path / "a", SetPlan(SignalSpec(500, 2)), workers=1)
    (line,) = [record.getMessage() for record in caplog.records if "channels" in record.getMessage()]
    assert "'MLII' x 2" in line and "lead_names" in line
    source = open_source("wfdb", tmp_path / "mitdb", lead_names="mlii=II")
    record = source.read(next(iter(source.entries())))
    np.testing.assert_array_equal(record.counts[[1, 10]], COUNTS[[1, 10]])
    assert source.describe()["options"]["lead_names"] == {"mlii": "II"}


@pytest.mark.parametrize("text", ["MLII", "MLII=IV", "=II", "a=I,A=II"])
def test_an_option_that_names_no_lead_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="lead_names is"):
        open_source("wfdb", tmp_path, lead_names=text)


@pytest.mark.parametrize(
    ("pattern", "factor"),
    [("{} (mV)", 1), ("{}_uV", 1000), ("{} [\u00b5V]", 1000), ("MDC_ECG_LEAD_{}", 1), ("{} / mV", 1), ("{}_mV", 1),
     ("Lead {} (microvolts)", 1000), ("{}(V)", 0.001), ("ECG {} uV", 1000)],
)  # fmt: skip
def test_a_column_says_its_lead_and_its_unit(tmp_path: Path, pattern: str, factor: float) -> None:
    frame = pd.DataFrame((MILLIVOLTS[::-1] * factor).T, columns=[pattern.format(lead) for lead in STANDARD_LEADS[::-1]])
    frame.insert(0, "sample", range(len(frame)))
    frame.to_csv(tmp_path / "a.csv", index=False)
    record = only("arrays", tmp_path, sampling_rate=500)
    np.testing.assert_allclose(record.millivolts(), MILLIVOLTS, atol=6e-4)
    assert record.lead_mask.all()
    if pattern.upper().startswith("MDC"):
        return
    other = "V" if factor != 0.001 else "mV"
    with pytest.raises(RecordRejected, match=f"says its unit is .*, the option unit says {other}"):
        only("arrays", tmp_path, sampling_rate=500, unit=other)


def test_columns_of_several_units_are_each_in_its_own_and_one_without_is_refused(tmp_path: Path) -> None:
    names = [f"{lead} ({'uV' if row % 2 else 'mV'})" for row, lead in enumerate(STANDARD_LEADS)]
    scaled = MILLIVOLTS * np.array([1000 if row % 2 else 1 for row in range(12)])[:, np.newaxis]
    pd.DataFrame(scaled.T, columns=names).to_csv(tmp_path / "a.csv", index=False)
    np.testing.assert_allclose(only("arrays", tmp_path, sampling_rate=500).millivolts(), MILLIVOLTS, atol=6e-4)
    names[3] = "aVR"
    pd.DataFrame(scaled.T, columns=names).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(RecordRejected, match="some leads have a unit in their names, aVR has none"):
        only("arrays", tmp_path, sampling_rate=500)


def test_names_in_an_npz_say_units_too_and_contradict_its_unit_never_silently(tmp_path: Path) -> None:
    names = np.array([f"{lead} (uV)" for lead in STANDARD_LEADS])
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS * 1000, fs=500, leads=names)
    np.testing.assert_allclose(only("arrays", tmp_path).millivolts(), MILLIVOLTS, atol=6e-4)
    np.savez(tmp_path / "a.npz", signal=MILLIVOLTS * 1000, fs=500, leads=names, unit="mV")
    with pytest.raises(RecordRejected, match="its unit is not the one in the names of its leads"):
        only("arrays", tmp_path)


def test_plain_names_differ_where_leads_do() -> None:
    assert plain_name("-aVR") != plain_name("aVR") and plain_name("MDC_ECG_LEAD_AVR") == "avr"
