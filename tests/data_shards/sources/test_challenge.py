"""Challenge folders, Chapman-Shaoxing-Ningbo and both forms of CPSC2018: headers' comments to labels, statements and
demographics."""

from __future__ import annotations

import csv
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from cardialign.data_shards.build.build import build_shards
from cardialign.data_shards.errors import DataError, RecordRejected, UserError
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.base import Source
from cardialign.data_shards.sources.shared.patients import patient_hash
from cardialign.data_shards.sources.vocabularies import snomed
from tests.support.wfdb_files import ecg_counts, write_record

MAT_HEAD = b"\0" * 24


def challenge_record(
    path: Path, dx: str = "#Dx: 164889003", age: str = "#Age: 59", sex: str = "#Sex: Male", samples: int = 600
) -> Path:
    """A .hea and .mat pair as the Challenges publish them: 24 bytes before the counts, comments without a space."""
    counts = ecg_counts(samples, gain=1000)
    write_record(
        path,
        counts,
        gains="1000/mV",
        storage="16+24",
        prefix=MAT_HEAD,
        suffix=".mat",
        record_line=f"{path.name} 12 500 {samples} 05-Feb-2020 11:39:16",
    )
    with path.with_name(path.name + ".hea").open("a") as stream:
        stream.write("\n".join([age, sex, dx, "#Rx: Unknown"]) + "\n")
    return path


def original_record(path: Path, millivolts: np.ndarray, sex: str = "Female", age: float = 48) -> None:
    savemat(path, {"ECG": {"sex": sex, "age": age, "data": millivolts}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    challenge_record(tmp_path / "g1" / "E00001", "#Dx: 164889003,59118001,164934002")
    challenge_record(tmp_path / "g1" / "E00002", "# Dx: 426783006", sex="# Sex: Female", age="# Age: NaN")
    challenge_record(tmp_path / "g2" / "E00003", "#Dx: ", sex="#Sex: Unknown")
    challenge_record(tmp_path / "g2" / "E00004", "#Dx: 164889003, 999000999", age="#Age: 300")
    return tmp_path


def test_a_challenge_folder_is_read_at_any_depth_with_codes_and_demographics(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source("challenge", folder)
    assert isinstance(source, Source)
    records = {entry.key: source.read(entry) for entry in source.entries()}
    first = records["challenge-E00001"]
    assert first.labels == {"snomed": ("164889003", "59118001", "164934002"), "challenge": ("AF", "RBBB", "TAb")}
    assert first.statements == ("Atrial fibrillation", "Right bundle branch block", "T wave abnormality")
    assert (first.age_years, first.sex, first.patient) == (59.0, "male", patient_hash("E00001"))
    np.testing.assert_array_equal(first.counts, ecg_counts(600, gain=1000))
    assert [(r.age_years, r.sex) for r in records.values()] == [
        (59.0, "male"),
        (None, "female"),
        (59.0, None),
        (90.0, "male"),
    ]
    assert records["challenge-E00003"].labels == {} and records["challenge-E00003"].statements == ()
    assert records["challenge-E00004"].labels["snomed"] == ("164889003", "999000999")
    assert records["challenge-E00004"].statements == ("Atrial fibrillation",)
    assert "999000999=1" in caplog.text and "without a diagnosis source=challenge records=1" in caplog.text


def test_two_records_of_one_name_are_refused_with_both_paths(folder: Path) -> None:
    challenge_record(folder / "g3" / "E00001")
    with pytest.raises(
        DataError, match=r"'challenge-E00001' occurs more than once: g1/E00001 \(record 1 .* and g3/E00001 \(record 5\)"
    ):
        build_shards(open_source("challenge", folder), folder / "set", workers=1)


def test_an_empty_folder_and_none_at_all_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no record found") as caught:
        list(open_source("csn", tmp_path).entries())
    assert "JSnnnnn.hea" in caught.value.remedy
    with pytest.raises(UserError, match="does not exist"):
        open_source("csn", tmp_path / "nowhere")


def test_a_header_without_its_signal_is_rejected_alone(folder: Path) -> None:
    (folder / "g1" / "E00001.mat").unlink()
    source = open_source("challenge", folder)
    first, second, *_ = source.entries()
    with pytest.raises(RecordRejected, match="missing-file"):
        source.read(first)
    assert source.read(second).lead_mask.all()


def test_a_mat_file_saved_again_in_matlab_5_is_read_and_never_as_noise(folder: Path) -> None:
    counts = ecg_counts(600, gain=1000)
    savemat(folder / "g1" / "E00001.mat", {"val": counts.astype(np.float64)}, do_compression=True)
    savemat(folder / "g1" / "E00002.mat", {"val": counts / 1000})
    savemat(folder / "g2" / "E00003.mat", {"val": counts[:, :300]})
    savemat(folder / "g2" / "E00004.mat", {"ecg": counts})
    source = open_source("challenge", folder)
    good, *bad = source.entries()
    np.testing.assert_array_equal(source.read(good).counts, counts)
    reasons = []
    for entry in bad:
        with pytest.raises(RecordRejected) as caught:
            source.read(entry)
        reasons.append(caught.value.reason)
    assert reasons == ["bad-format", "truncated-signal", "bad-format"]


def test_a_link_back_to_the_folder_above_is_followed_once(folder: Path) -> None:
    (folder / "g1" / "again").symlink_to(folder)
    assert len(list(open_source("challenge", folder).entries())) == 4


def test_outside_labels_join_by_name_or_key_and_must_fit_somewhere(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "truth.csv"
    table.write_text("record,label_set,label\nE00001,reviewed,AF\nchallenge-E00003,reviewed,\n")
    source = open_source("challenge", folder, labels=table)
    assert source.label_sets == ("snomed", "challenge", "reviewed")
    assert [entry.meta["labels"].get("reviewed") for entry in source.entries()] == [("AF",), None, (), None]
    copy = pickle.loads(pickle.dumps(source))
    assert copy._outside is None, "every worker process would hold the label table"
    assert list(copy.entries()) == list(source.entries())
    table.write_text("record,label_set,label\nnobody,reviewed,AF\n")
    with pytest.raises(DataError, match=r"0 of 4 records have a row in truth\.csv"):
        list(open_source("challenge", folder, labels=table).entries())


def test_a_code_has_its_chapman_acronym_and_those_of_the_findings_that_it_is_a_kind_of(tmp_path: Path) -> None:
    challenge_record(tmp_path / "WFDBRecords" / "01" / "JS00005", "#Dx: 164890007,429622005,428750005,270492004")
    challenge_record(tmp_path / "WFDBRecords" / "01" / "JS45551", "#Dx: 106068003")
    source = open_source("csn", tmp_path, salt="s")
    flutter, atrial = source.entries()
    assert flutter.key == "csn-JS00005"
    assert flutter.meta["labels"]["chapman"] == ("AF", "STDD", "STTC", "1AVB", "AVB")
    assert "chapman" not in atrial.meta["labels"] and atrial.meta["statements"] == ("Atrial rhythm",)
    assert flutter.meta["patient"] == patient_hash("JS00005", Secret("s"))
    assert "JS00005" not in json.dumps(source.describe())


def test_cpsc2018_reads_abbreviations_and_codes_as_the_same_classes(tmp_path: Path) -> None:
    for name, dx in {
        "A0001": "RBBB",
        "A0002": "Normal",
        "A0003": "i-avb,STE",
        "A0004": "164889003,164909002",
        "A0005": "164884008",
    }.items():
        challenge_record(tmp_path / name, f"#Dx: {dx}")
    metas = [entry.meta for entry in open_source("cpsc2018", tmp_path).entries()]
    assert [meta["labels"]["cpsc2018"] for meta in metas] == [
        ("RBBB",),
        ("Normal",),
        ("I-AVB", "STE"),
        ("AF", "LBBB"),
        ("PVC",),
    ]
    assert metas[2]["labels"]["snomed"] == ("270492004", "164931005")
    assert metas[1]["statements"] == ("Sinus rhythm",)


def test_sinus_rhythm_beside_a_finding_is_no_normal_ecg(tmp_path: Path) -> None:
    """The Challenge's further records of CPSC2018 name the rhythm beside what is wrong."""
    for name, dx in {"Q0001": "426783006,164909002", "Q0002": "426783006,164865005", "Q0003": "426783006"}.items():
        challenge_record(tmp_path / name, f"#Dx: {dx}")
    metas = [entry.meta for entry in open_source("cpsc2018", tmp_path).entries()]
    assert [meta["labels"]["cpsc2018"] for meta in metas] == [("LBBB",), (), ("Normal",)]
    assert [meta["labels"]["challenge"][0] for meta in metas] == ["NSR"] * 3


@pytest.mark.parametrize("source", ["challenge", "csn", "cpsc2018"])
def test_a_record_of_which_no_code_is_known_is_a_negative_of_nothing(source: str, tmp_path: Path) -> None:
    challenge_record(tmp_path / "A0001", "#Dx: 49436004")  # atrial fibrillation by another code
    challenge_record(tmp_path / "A0002", "#Dx: 999000999, 49436004")
    challenge_record(tmp_path / "A0003", "#Dx: 426177001")
    metas = [entry.meta["labels"] for entry in open_source(source, tmp_path).entries()]
    assert metas[:2] == [{"snomed": ("49436004",)}, {"snomed": ("999000999", "49436004")}]
    assert metas[2]["challenge"] == ("SB",)


def test_cpsc2018_original_files_give_counts_at_a_stated_gain(tmp_path: Path) -> None:
    millivolts = ecg_counts(1205, gain=1000).astype(np.float64) / 1000 + 3e-7
    original_record(tmp_path / "A1980.mat", millivolts)
    original_record(tmp_path / "A1981.mat", np.where(np.arange(1205) == 7, np.nan, millivolts), sex="", age=np.nan)
    (tmp_path / "Training").mkdir()
    (tmp_path / "Training" / "REFERENCE.csv").write_text("Recording,First_label,Second_label,Third_label\nA1980,5,8,\n")
    source = open_source("cpsc2018", tmp_path)
    first, second = (source.read(entry) for entry in source.entries())
    np.testing.assert_array_equal(first.counts, ecg_counts(1205, gain=1000))
    assert (set(first.gain.tolist()), first.sampling_rate, first.age_years, first.sex) == (
        {1000.0},
        500.0,
        48.0,
        "female",
    )
    assert first.labels["cpsc2018"] == ("RBBB", "STD") and first.statements == (
        "Right bundle branch block",
        "ST depression",
    )
    assert (second.age_years, second.sex, second.labels, len(second.quality["non-finite"])) == (None, None, {}, 12)
    finer = open_source("cpsc2018", tmp_path, gain="4880")
    assert (
        set(finer.read(next(iter(finer.entries()))).gain.tolist()) == {4880.0}
        and finer.describe()["options"]["gain"] == 4880.0
    )


def test_peaks_beyond_16_bits_halve_the_gain_of_their_lead_and_lose_nothing_else(tmp_path: Path) -> None:
    millivolts = ecg_counts(600, gain=1000).astype(np.float64) / 1000
    millivolts[3, 40] = 50.0
    original_record(tmp_path / "A0001.mat", millivolts)
    source = open_source("cpsc2018", tmp_path)
    record = source.read(next(iter(source.entries())))
    assert record.gain.tolist() == [500.0 if i == 3 else 1000.0 for i in range(12)]
    np.testing.assert_allclose(record.millivolts()[3], millivolts[3], atol=0.001)


@pytest.mark.parametrize("content", [b"", b"not a mat file" * 20, None], ids=["empty", "noise", "another variable"])
def test_an_original_mat_that_is_empty_noise_or_another_variable_is_rejected_by_name(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "A0001.mat"
    if content is None:
        savemat(path, {"val": np.zeros((12, 10))})
    else:
        path.write_bytes(content)
    source = open_source("cpsc2018", tmp_path)
    with pytest.raises(RecordRejected, match=r"bad-format.*A0001\.mat"):
        source.read(next(iter(source.entries())))


def test_a_reference_with_other_numbers_and_a_gain_that_is_none_are_refused(tmp_path: Path) -> None:
    original_record(tmp_path / "A0001.mat", np.zeros((12, 10)))
    (tmp_path / "REFERENCE.csv").write_text("Recording,First_label\nA0001,10\n")
    with pytest.raises(DataError, match=r"A0001 has the labels \['10'\]"):
        list(open_source("cpsc2018", tmp_path).entries())
    with pytest.raises(UserError, match="gain is '-3'"):
        open_source("cpsc2018", tmp_path, gain="-3")


def test_the_table_of_codes_is_consistent() -> None:
    assert len(snomed._ROWS) == len(snomed.ABBREVIATIONS), "a code occurs twice"
    assert set(snomed.CHAPMAN) | set(snomed.CPSC2018) <= set(snomed.ABBREVIATIONS)
    assert len({name for names in snomed.SCORED.values() for name in names}) == 26
    assert snomed.CPSC2018_CLASSES == ("Normal", "AF", "I-AVB", "LBBB", "RBBB", "PAC", "PVC", "STD", "STE")
    folded: dict[str, set[str]] = {}
    for abbreviation in snomed.ABBREVIATIONS.values():
        folded.setdefault(abbreviation.casefold(), set()).add(abbreviation)
    assert all(len(spellings) == 1 for spellings in folded.values()), "case would not tell abbreviations apart"


def _published(real_data: Path, files: str) -> list[dict[str, str]]:
    return [
        row
        for part in ("train", "val", "test")
        for row in csv.DictReader((real_data / "protocols/merl" / files.format(part)).open())
    ]


def test_real_csn_labels_are_those_of_the_published_label_files(
    real_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    source = open_source("csn", real_data / "chapman-shaoxing-ningbo")
    entries = {entry.key: entry for entry in source.entries()}
    diagnoses = {
        row["ecg_path"].rpartition("/")[2][:-4]: row["diagnose"]
        for row in _published(real_data, "chapman/chapman_{}.csv")
    }
    named = {code: names[0] for code, names in snomed.CHAPMAN.items()}  # without the findings that these are kinds of
    compared = {
        key: ({named[c] for c in e.meta["labels"]["snomed"] if c in named}, set(diagnoses[key[4:]].split(",")))
        for key, e in entries.items()
        if key[4:] in diagnoses
    }
    assert len(compared) >= 20 and all(theirs <= ours for ours, theirs in compared.values())
    assert sum(ours == theirs for ours, theirs in compared.values()) >= 0.9 * len(
        compared
    )  # the label files leave out a code of JS00005
    assert "codes without a name" not in caplog.text and len(entries) == 53
    assert all(source.read(entry).statements for entry in entries.values())


def test_real_cpsc2018_labels_are_those_of_the_published_label_files(real_data: Path) -> None:
    source = open_source("cpsc2018", real_data / "cpsc2018")
    ours = {entry.key.removeprefix("cpsc2018-"): set(entry.meta["labels"]["cpsc2018"]) for entry in source.entries()}
    theirs = {"NORM": "Normal", "AFIB": "AF", "1AVB": "I-AVB", "CLBBB": "LBBB", "CRBBB": "RBBB", "VPC": "PVC"}
    rows = {
        row["filename"]: {theirs.get(c, c) for c in list(row)[7:] if row[c] == "1"}
        for row in _published(real_data, "icbeb/icbeb_{}.csv")
    }
    compared = [name for name in ours if name in rows]
    assert len(compared) > 100 and all(ours[name] <= rows[name] and ours[name] for name in compared)
    assert source.read(next(iter(source.entries()))).age_years == 74.0


def test_real_original_cpsc2018_files_read(real_data: Path) -> None:
    source = open_source("cpsc2018", real_data / "cpsc2018-original")
    records = [source.read(entry) for entry in source.entries()]
    assert [record.key for record in records] == [f"cpsc2018-A{number}" for number in range(1980, 1985)]
    assert [record.samples for record in records] == [5000, 7950, 5000, 7500, 9500] and not any(
        record.quality for record in records
    )


def test_a_reference_of_floats_and_suffixes_fits_and_rows_that_contradict_each_other_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("A0001", "A0002"):
        savemat(tmp_path / f"{name}.mat", {"ECG": {"sex": "Male", "age": 70.0, "data": ecg_counts(1000) / 200}})
    rows = "A0001.mat,5.0,8.0,\n A0002 ,1,,\nA0002,2,,\n"
    (tmp_path / "REFERENCE.csv").write_text(f"Recording,First_label,Second_label,Third_label\n{rows}")
    source = open_source("cpsc2018", tmp_path)
    first, second = source.entries()
    assert first.meta["labels"]["cpsc2018"] == ("RBBB", "STD") and second.meta["labels"]["cpsc2018"] == ("Normal",)
    assert "1 ids stand in several rows of REFERENCE.csv that say different things" in caplog.text
    assert source.describe()["joins"]["reference"]["matched"] == 2


@pytest.mark.parametrize("given", [True, False])
def test_headers_and_a_reference_that_disagree_on_a_record_are_told_and_refused_where_none_agrees(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, given: bool
) -> None:
    """REFERENCE.csv numbers the classes from 1: 5 is RBBB, 2 AF, 8 ST depression."""
    for name, dx in {"A0001": "59118001", "A0002": "164889003", "A0003": "999000999"}.items():
        challenge_record(tmp_path / "set" / name, f"#Dx: {dx}")
    table = tmp_path / ("given.csv" if given else "set/REFERENCE.csv")
    options = {"reference": table} if given else {}
    for numbers, told in ((("5", "2"), ""), (("5", "8"), "disagree on 1 of the 2 records"), (("2", "8"), "refused")):
        rows = "".join(f"A000{k},{number},\n" for k, number in enumerate((*numbers, "1"), start=1))
        table.write_text(f"Recording,First_label,Second_label\n{rows}")
        caplog.clear()
        if told == "refused":
            with pytest.raises(
                DataError, match=r"disagree on 2 of the 2 records .* A0001 RBBB and AF; A0002 AF and STD"
            ):
                list(open_source("cpsc2018", tmp_path / "set", **options).entries())
            continue
        assert len(list(open_source("cpsc2018", tmp_path / "set", **options).entries())) == 3
        assert ("disagree" in caplog.text) == bool(told) and told in caplog.text


def test_a_header_without_a_diagnosis_has_the_labels_of_the_reference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """REFERENCE.csv numbers the classes from 1: 5 is RBBB, 8 ST depression, 2 AF."""
    headers = {"A0001": "#Lead: 12", "A0002": "#Dx: Unknown", "A0003": "#Dx:", "A0004": "#Dx: 426783006"}
    for name, comment in headers.items():
        challenge_record(tmp_path / name, comment)
    rows = "A0001,5,8\nA0002,2,\nA0004,1,\n"
    (tmp_path / "REFERENCE.csv").write_text(f"Recording,First_label,Second_label\n{rows}")
    source = open_source("cpsc2018", tmp_path)
    first, second, third, fourth = (source.read(entry) for entry in source.entries())
    assert first.labels["cpsc2018"] == ("RBBB", "STD")
    assert first.statements == ("Right bundle branch block", "ST depression")
    assert second.labels["cpsc2018"] == ("AF",) and fourth.labels["cpsc2018"] == ("Normal",)
    assert third.labels == {} and "records without a diagnosis source=cpsc2018 records=1" in caplog.text


def test_a_line_per_diagnosis_is_every_diagnosis(tmp_path: Path) -> None:
    challenge_record(tmp_path / "E1", "#Dx: 426783006\n# dx: 39732003\n#Dx: \n#Dx: 426783006")
    source = open_source("challenge", tmp_path)
    (record,) = (source.read(entry) for entry in source.entries())
    assert record.labels["snomed"] == ("426783006", "39732003")
