"""MIMIC-IV-ECG as published: joined by study_id, leads reordered, reports cleaned, bad records and wrong layouts
named."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.errors import DataError, RecordRejected, UserError
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.base import Source
from cardialign.data_shards.sources.shared.patients import fold_of, patient_hash
from tests.support.wfdb_files import MIMIC_LEADS, ecg_counts, write_record

LIST = ("subject_id", "study_id", "file_name", "ecg_time", "path")
MEASUREMENTS = (
    "subject_id",
    "study_id",
    "cart_id",
    "ecg_time",
    *(f"report_{k}" for k in range(18)),
    "bandwidth",
    "rr_interval",
)
STUDIES = {40689238: 10000032, 44458630: 10000032, 49036311: 10000117, 45090959: 10000117}
TIMES = {study: f"218{k}-07-23 08:44:00" for k, study in enumerate(STUDIES)}


def write_csv(path: Path, header, rows) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


def report_row(study: int, reports: dict[int, str]) -> list:
    return [
        STUDIES.get(study, 0),
        study,
        1,
        TIMES.get(study, ""),
        *(reports.get(k, "") for k in range(18)),
        "0.005-150 Hz",
        659,
    ]


@pytest.fixture
def root(tmp_path) -> Path:
    """Four records of two patients; measurements in another order, for a fifth record too, and not for the last one."""
    folder = tmp_path / "mimic"
    rows = []
    for k, (study, subject) in enumerate(STUDIES.items()):
        path = f"files/p{str(subject)[:4]}/p{subject}/s{study}/{study}"
        write_record(folder / path, ecg_counts(5000, seed=k), leads=MIMIC_LEADS, comments=[f"<subject_id>: {subject}"])
        rows.append((subject, study, study, TIMES[study], path))
    write_csv(folder / "record_list.csv", LIST, rows)
    measurements = [
        report_row(49036311, {0: "Sinus rhythm.", 2: '*** "ACUTE" MI, INFERIOR ***', 17: "Abnormal EKG"}),
        report_row(99999999, {0: "Of another record"}),
        report_row(44458630, {1: "Sinus rhythm"}),
        report_row(40689238, {0: "Sinus rhythm", 1: "Possible right atrial abnormality", 3: "Borderline ECG"}),
    ]
    write_csv(folder / "machine_measurements.csv", MEASUREMENTS, measurements)
    return folder


def entries_by_study(root: Path, **options) -> dict[int, object]:
    return {
        int(entry.key.removeprefix("mimic-")): entry for entry in open_source("mimic-iv-ecg", root, **options).entries()
    }


def test_reports_are_joined_by_study_and_never_by_row_order(root):
    statements = {study: entry.meta["statements"] for study, entry in entries_by_study(root).items()}
    assert statements == {
        40689238: ("Sinus rhythm", "Possible right atrial abnormality", "Borderline ECG"),
        44458630: ("Sinus rhythm",),
        49036311: ("Sinus rhythm", '"ACUTE" MI, INFERIOR', "Abnormal ECG"),
        45090959: (),
    }


def test_the_order_is_that_of_record_list(root):
    assert list(entries_by_study(root)) == list(STUDIES)


def test_a_record_reads_in_standard_lead_order_with_everything_the_tables_say(root):
    source = open_source("mimic-iv-ecg", root, salt="s")
    assert isinstance(source, Source)
    record = source.read(list(source.entries())[1])
    stored = ecg_counts(5000, seed=1)
    for row, lead in enumerate(STANDARD_LEADS):
        np.testing.assert_array_equal(record.counts[row], stored[MIMIC_LEADS.index(lead)])
    assert record.key == "mimic-44458630"
    assert (record.sampling_rate, record.samples, record.acquired) == (500.0, 5000, "2181-07-23T08:44:00")
    assert record.patient == patient_hash("10000032", Secret("s"))
    assert record.fold == fold_of(record.patient)
    assert (record.age_years, record.sex, record.labels, record.quality) == (None, None, {}, {})
    np.testing.assert_array_equal(record.gain, 200)


def test_age_and_sex_come_from_the_patients_table(root, tmp_path):
    table = tmp_path / "somewhere.csv"
    write_csv(
        table,
        ("subject_id", "gender", "anchor_age", "anchor_year", "dod"),
        [(10000032, "F", 52, 2180, ""), (10000117, "M", 0, 2183, "")],
    )
    entries = entries_by_study(root, patients=str(table))
    source = open_source("mimic-iv-ecg", root, patients=table)
    ages = [(source.read(entry).age_years, source.read(entry).sex) for entry in entries.values()]
    assert ages == [(52.0, "female"), (53.0, "female"), (0.0, "male"), (0.0, "male")]


def test_a_patient_absent_from_the_patients_table_is_unknown(root):
    write_csv(
        root / "patients.csv", ("subject_id", "gender", "anchor_age", "anchor_year"), [(10000032, "F", 52, 2180)]
    )  # found by itself
    entry = entries_by_study(root)[49036311]
    assert (entry.meta["age"], entry.meta["sex"]) == (None, None)


def test_outside_labels_are_attached_by_study(root, tmp_path):
    write_csv(
        tmp_path / "truth.csv",
        ("study_id", "label_set", "label"),
        [(45090959, "finding", "AF"), (45090959, "finding", "LBBB"), (40689238, "finding", "")],
    )
    source = open_source("mimic-iv-ecg", root, labels=tmp_path / "truth.csv")
    labels = [source.read(entry).labels for entry in source.entries()]
    assert labels == [{"finding": ()}, {}, {}, {"finding": ("AF", "LBBB")}]
    assert source.label_sets == ("finding",)


def test_note_links_are_kept_on_request(root, tmp_path, caplog):
    table = tmp_path / "waveform_note_links.csv"
    header = ("subject_id", "study_id", "waveform_path", "note_id", "note_seq", "charttime")
    links = [
        (10000032, 40689238, "x", "10000032-EK-4", 4, ""),
        (10000032, 40689238, "x", "10000032-EK-5", 5, ""),
        ("", 44458630, "x", "n", "", ""),
    ]
    write_csv(table, header, links)
    source = open_source("mimic-iv-ecg", root, waveform_note_links=table)
    extras = [source.read(entry).extra for entry in source.entries()]
    assert extras == [{"note_id": "10000032-EK-4", "note_seq": 4}, {"note_id": "n", "note_seq": None}, {}, {}]
    assert "note links" in caplog.text and source.describe()["tables"]["notes"]["rows"] == 3
    assert all("note" not in entry.meta for entry in open_source("mimic-iv-ecg", root).entries())


def test_a_row_whose_path_is_that_of_another_subject_or_study_is_rejected_and_never_given_its_report(root):
    rows = list(csv.reader((root / "record_list.csv").open()))
    paths = [row[4] for row in rows[1:]]
    shifted = [[*row[:4], path] for row, path in zip(rows[1:], [*paths[1:], paths[0]], strict=True)]
    write_csv(root / "record_list.csv", rows[0], shifted)
    source = open_source("mimic-iv-ecg", root)
    for entry in source.entries():
        with pytest.raises(RecordRejected, match=r"bad-metadata.*says s(tudy|ubject) \d+, the path \d+"):
            source.read(entry)


def test_labels_that_their_table_gives_to_another_subject_are_no_labels_of_the_record(root, tmp_path):
    """A column of subjects beside the studies is a witness: sorted by one column, each study has another's labels."""
    for people, doubtful in ((list(STUDIES.values()), 0), (sorted(STUDIES.values(), reverse=True), 4)):
        rows = [(f"p{p}", s, "mine", "AF") for s, p in zip(STUDIES, people, strict=True)]
        write_csv(tmp_path / "labels.csv", ("subject_id", "study_id", "label_set", "label"), rows)
        source, rejected = open_source("mimic-iv-ecg", root, labels=tmp_path / "labels.csv"), []
        for entry in source.entries():
            try:
                assert source.read(entry).labels == {"mine": ("AF",)}
            except RecordRejected as error:
                rejected.append(str(error))
        assert len(rejected) == doubtful
        assert all("gives the record to patient 1" in each and "the table of labels to" in each for each in rejected)


def test_a_report_that_its_table_gives_to_another_subject_is_rejected_with_both_named(root):
    rows = list(csv.reader((root / "machine_measurements.csv").open()))
    studies = [row[1] for row in rows[1:]]  # one column sorted, the others left
    rows[1:] = [[row[0], study, *row[2:]] for row, study in zip(rows[1:], sorted(studies), strict=True)]
    write_csv(root / "machine_measurements.csv", rows[0], rows[1:])
    source, found = open_source("mimic-iv-ecg", root), {}
    for entry in source.entries():
        try:
            found[entry.key] = source.read(entry).statements
        except RecordRejected as error:
            found[entry.key] = str(error)
    first = found["mimic-40689238"]
    assert "bad-metadata" in first and "record_list.csv gives study 40689238 to subject 10000032" in first
    assert "machine_measurements.csv to 10000117" in first
    assert found["mimic-45090959"] == (), "in no table of reports, as before"
    assert found["mimic-44458630"] not in (("Of another record",), ("Sinus rhythm",))


def test_a_note_that_its_table_gives_to_another_subject_is_rejected(root, tmp_path):
    header = ("subject_id", "study_id", "waveform_path", "note_id", "note_seq", "charttime")
    write_csv(tmp_path / "links.csv", header, [("p10000117.0", 40689238, "x", "10000117-EK-4", 4, "")])
    source = open_source("mimic-iv-ecg", root, waveform_note_links=tmp_path / "links.csv", min_matched=0)
    entry = next(iter(source.entries()))
    with pytest.raises(RecordRejected, match=r"study 40689238 to subject 10000032, the table of notes to 10000117"):
        source.read(entry)


def test_a_header_of_another_subject_is_rejected(root):
    moved = [(s, k, k, TIMES[k], f"files/{k}") for k, s in STUDIES.items()]
    for study in STUDIES:
        write_record(root / f"files/{study}", ecg_counts(5000), leads=MIMIC_LEADS, comments=["<subject_id>: 10000032"])
    write_csv(root / "record_list.csv", LIST, moved)
    source = open_source("mimic-iv-ecg", root, salt="0123456789abcdef")
    for entry, subject in zip(source.entries(), STUDIES.values(), strict=True):
        if subject == 10000032:
            assert source.read(entry).valid_samples == 5000
        else:
            with pytest.raises(RecordRejected, match=r"bad-metadata.*is of subject 10000032"):
                source.read(entry)


@pytest.mark.parametrize(("one", "other"), [("0017", "17"), ("Q7", "q7"), ("Q7", "Q007")])
def test_subjects_whose_ids_differ_in_capitals_or_leading_zeros_alone_are_told(root, caplog, one, other):
    for subjects in ((one, other), ("Q7", "q8")):
        caplog.clear()
        moved = [(subject, k, k, "", f"files/{k}") for k, subject in enumerate(subjects, start=1)]
        write_csv(root / "record_list.csv", LIST, moved)
        list(open_source("mimic-iv-ecg", root, min_matched=0).entries())
        assert ("patients spelled alike source=mimic-iv-ecg names=1" in caplog.text) == (subjects == (one, other))


def test_a_signal_file_that_is_missing_cut_or_all_zeros_rejects_its_record_only(root):
    source = open_source("mimic-iv-ecg", root)
    entries = list(source.entries())
    (root / f"{entries[0].path}.dat").unlink()
    (root / f"{entries[1].path}.dat").write_bytes(b"\0" * 100)
    (root / f"{entries[2].path}.dat").write_bytes(b"\0" * 120_000)
    reasons = []
    for entry in entries[:3]:
        with pytest.raises(RecordRejected) as caught:
            source.read(entry)
        reasons.append(caught.value.reason)
    assert reasons == ["missing-file", "truncated-signal", "no-signal"]
    assert source.read(entries[3]).lead_mask.all()


def test_source_and_entries_travel_to_worker_processes(root):
    source = open_source("mimic-iv-ecg", root)
    entries = list(source.entries())
    copy, entry = pickle.loads(pickle.dumps((source, entries[0])))
    np.testing.assert_array_equal(copy.read(entry).counts, source.read(entries[0]).counts)
    assert len(pickle.dumps(entry)) < 500


def test_the_description_names_tables_by_digest_and_holds_no_path_and_no_salt(root):
    source = open_source("mimic-iv-ecg", root, salt="secret-salt")
    list(source.entries())
    text = json.dumps(source.describe())
    assert "record_list.csv" in text and "sha256" in text
    assert "secret-salt" not in text and str(root) not in text


def with_times(root: Path, times: list[str]) -> None:
    """machine_measurements.csv with these times: of studies 49036311, 99999999, 44458630 and 40689238."""
    header, *rows = csv.reader((root / "machine_measurements.csv").open())
    rows = [[*row[:3], time, *row[4:]] for row, time in zip(rows, times, strict=True)]
    write_csv(root / "machine_measurements.csv", header, rows)


def test_a_report_of_another_time_than_its_ecg_is_counted_and_told_with_both_times(root, caplog):
    with_times(root, ["2182-07-23 08:44:00", "", "2199-01-01 00:00:00", "2180-07-23T08:44"])
    entries_by_study(root)
    (told,) = [each.getMessage() for each in caplog.records if "disagree" in each.getMessage()]
    assert "record_list.csv and machine_measurements.csv disagree on 1 of the 3 records that both give one" in told
    assert "study 44458630 2181-07-23 08:44:00 and 2199-01-01 00:00:00" in told


def test_a_table_of_reports_whose_times_are_all_those_of_other_ecgs_ends_the_build_unless_told_otherwise(root, caplog):
    with_times(root, ["2180-07-23 08:44:00", "2181-07-23 08:44:00", "2182-07-23 08:44:00", "2183-07-23 08:44:00"])
    with pytest.raises(DataError, match=r"(?s)ecg_time: .* disagree on 3 of the 3 records.*--min-matched 0"):
        entries_by_study(root)
    assert len(entries_by_study(root, min_matched=0)) == 4 and "disagree on 3 of the 3" in caplog.text


@pytest.mark.parametrize("times", [
    ["2182-07-23 08:44:31", "never", "2181/7/23 8:44", "2180-07-23T08:44:00"],
    ["23/07/2182 8:44", "", "", ""],
    ["2182-07-23", "", "2181-07-23 00:00:00", "2180-07-23"],
])  # fmt: skip
def test_times_that_a_spreadsheet_cut_or_rewrote_are_no_other_times(root, caplog, times):
    with_times(root, times)
    entries_by_study(root)
    assert "disagree" not in caplog.text


def test_two_measurement_rows_of_a_study_keep_the_first(root, caplog):
    with (root / "machine_measurements.csv").open("a", newline="") as stream:
        csv.writer(stream).writerow(report_row(40689238, {0: "Something else"}))
    assert entries_by_study(root)[40689238].meta["statements"][0] == "Sinus rhythm"
    assert "duplicated" in caplog.text


def test_a_missing_root_and_a_wrong_layout_say_what_is_expected(root, tmp_path):
    with pytest.raises(UserError, match="does not exist") as caught:
        open_source("mimic-iv-ecg", tmp_path / "nowhere")
    assert "record_list.csv, machine_measurements.csv and files/" in caught.value.remedy
    with pytest.raises(UserError, match=r"record_list\.csv, machine_measurements\.csv not found"):
        open_source("mimic-iv-ecg", root / "files")
    (root / "machine_measurements.csv").unlink()
    with pytest.raises(UserError, match=r": machine_measurements\.csv not found"):
        open_source("mimic-iv-ecg", root)
    with pytest.raises(UserError, match="patients table"):
        (root / "machine_measurements.csv").touch()
        open_source("mimic-iv-ecg", root, patients=tmp_path / "none.csv")


def test_missing_columns_are_named(root):
    write_csv(root / "machine_measurements.csv", ("subject_id", "study_id", "report_0"), [(1, 2, "x")])
    with pytest.raises(DataError, match=r"machine_measurements\.csv lacks the columns report_1, report_2"):
        list(open_source("mimic-iv-ecg", root).entries())
    write_csv(root / "record_list.csv", ("subject_id", "path"), [(1, "x")])
    with pytest.raises(DataError, match=r"record_list\.csv lacks the columns study_id, ecg_time"):
        list(open_source("mimic-iv-ecg", root).entries())


def test_empty_tables_are_errors_of_the_whole_set(root):
    write_csv(root / "machine_measurements.csv", MEASUREMENTS, [])
    with pytest.raises(DataError, match="empty report table"):
        list(open_source("mimic-iv-ecg", root).entries())
    write_csv(root / "record_list.csv", LIST, [])
    with pytest.raises(DataError, match=r"record_list\.csv is empty"):
        list(open_source("mimic-iv-ecg", root).entries())


def test_the_published_headers_and_row_are_understood(real_data, tmp_path):
    for name in ("record_list.csv", "machine_measurements.csv"):
        shutil.copy(real_data / "mimic-iv-ecg-format" / name, tmp_path / name)
    links = real_data / "mimic-iv-ecg-format/waveform_note_links.csv"
    (entry,) = open_source("mimic-iv-ecg", tmp_path, waveform_note_links=links).entries()
    assert entry.meta["note"] == ("10000032-EK-4", 4)
    assert entry.path == "files/p1000/p10000032/s40689238/40689238"
    assert entry.meta["statements"] == ("Sinus rhythm", "Possible right atrial abnormality", "Borderline ECG")


@pytest.mark.parametrize("form", ["{}", "ecg-{}", "0{}"], ids=["numbers", "words", "numbers written otherwise"])
def test_tables_of_many_stretches_are_joined_whatever_the_ids_look_like(root, form):
    studies = range(40_000_000, 40_020_000)
    rows = [(s % 9000, form.format(s), s, "2180-07-23 08:44:00", f"files/{s}") for s in studies]
    write_csv(root / "record_list.csv", LIST, [*rows, (1, "40000000x", 1, "", "files/x")])
    reports = [report_row(form.format(s), {0: f"Phrase {s % 50}", 4: "x"}) for s in reversed(studies) if s % 7]
    write_csv(root / "machine_measurements.csv", MEASUREMENTS, reports)
    assert (root / "record_list.csv").stat().st_size > 1 << 20, "one stretch would hold the whole table"
    *entries, other = open_source("mimic-iv-ecg", root).entries()
    for entry, study in zip(entries, studies, strict=True):
        assert (
            entry.meta["statements"] == ((f"Phrase {study % 50}", "x") if study % 7 else ())
            and entry.key == f"mimic-{form.format(study)}"
        )
    assert other.meta["statements"] == ()


def test_an_id_that_is_written_otherwise_is_another_id(root):
    with (root / "machine_measurements.csv").open("a", newline="") as stream:
        csv.writer(stream).writerow(report_row("045090959", {0: "Something else"}))
    assert entries_by_study(root)[45090959].meta["statements"] == ()


@pytest.mark.parametrize("blank", ["nan", "NaN", "NULL", "None", "<NA>", "NA"])
def test_a_table_saved_again_with_a_word_for_its_gaps_has_the_same_reports(root, blank):
    before = {study: entry.meta["statements"] for study, entry in entries_by_study(root).items()}
    path = root / "machine_measurements.csv"
    rows = list(csv.reader(path.open()))
    write_csv(path, rows[0], [[cell or blank for cell in row] for row in rows[1:]])
    assert {study: entry.meta["statements"] for study, entry in entries_by_study(root).items()} == before
    assert any(before.values())


def test_outside_labels_are_stripped_and_words_for_none_are_none(root, tmp_path):
    rows = [(40689238, "s", "AF "), (40689238, "s ", "AF"), (44458630, "s", "nan"), (44458630, "s", " ")]
    write_csv(tmp_path / "labels.csv", ("study_id", "label_set", "label"), rows)
    entries = entries_by_study(root, labels=tmp_path / "labels.csv")
    assert entries[40689238].meta["labels"] == {"s": ("AF",)}
    assert entries[44458630].meta["labels"] == {"s": ()}


@pytest.mark.parametrize("form", ["{}.hea", "{}.dat", " {} ", "windows"])
def test_a_list_that_names_files_means_their_records(root, form):
    before = {study: entry.path for study, entry in entries_by_study(root).items()}
    rows = list(csv.reader((root / "record_list.csv").open()))
    told = [row[4].replace("/", "\\") if form == "windows" else form.format(row[4]) for row in rows[1:]]
    lines = [[*row[:4], path] for row, path in zip(rows[1:], told, strict=True)]
    write_csv(root / "record_list.csv", rows[0], lines)
    assert {study: entry.path for study, entry in entries_by_study(root).items()} == before


def test_dates_that_a_spreadsheet_rewrote_are_counted_with_the_ages_that_are_lost_by_them(root, tmp_path, caplog):
    write_csv(tmp_path / "patients.csv", ("subject_id", "gender", "anchor_age", "anchor_year"),
              [(10000032, "F", "52,5", 2180), (10000117, "1", "old", 2182)])  # fmt: skip
    rows = list(csv.reader((root / "record_list.csv").open()))
    dated = [[*row[:3], "23/07/2180 8:44" if row[0] == "10000032" else row[3], row[4]] for row in rows[1:]]
    write_csv(root / "record_list.csv", rows[0], dated)
    source = open_source("mimic-iv-ecg", root, patients=tmp_path / "patients.csv")
    records = [source.read(entry) for entry in source.entries()]
    assert [record.acquired for record in records[:2]] == [None, None] and records[2].acquired is not None
    assert {record.age_years for record in records} == {None}
    assert "not understood source=mimic-iv-ecg number=2: 'time: 23/07/2180 8:44' x 2" in caplog.text
    assert "not understood table=patients.csv rows=2: 'anchor_age: old' x 1, 'gender: 1' x 1" in caplog.text
