"""CODE-15% in WFDB form: 400 Hz, demographics from headers or exams.csv, classes and statements only where the table
gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.signal.conform import conform
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.shared.patients import patient_hash
from tests.support.wfdb_files import ecg_counts, write_record

EXAMS = "exam_id,age,is_male,nn_predicted_age,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,death,timey,normal_ecg,trace_file\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for exam, comments in {
        1000104: ("Age: 65", "Sex: Female", "Chagas label: False", "Source: CODE-15%"),
        1000200: ("Age: 41", "Sex: Male", "Chagas label: True", "Source: SaMi-Trop"),
        1000300: (),
    }.items():
        counts = ecg_counts(2934, rate=400, gain=1000)
        leads = [lead.upper() for lead in STANDARD_LEADS]
        write_record(
            tmp_path / "data" / str(exam), counts, leads=leads, rate="400", gains="1000(0)/mV", comments=comments
        )
    return tmp_path


def test_headers_give_age_sex_and_the_chagas_label(folder: Path) -> None:
    source = open_source("code15", folder)
    records = [source.read(entry) for entry in source.entries()]
    assert [(r.key, r.age_years, r.sex) for r in records] == [
        ("code15-1000104", 65.0, "female"), ("code15-1000200", 41.0, "male"), ("code15-1000300", None, None)
    ]  # fmt: skip
    assert [r.labels for r in records] == [{"chagas": ()}, {"chagas": ("Chagas",)}, {}]
    assert [r.statements for r in records] == [(), (), ()]
    assert records[1].extra["collection"] == "SaMi-Trop"
    conformed = conform(records[0], SignalSpec())
    assert (conformed.samples, conformed.valid_samples, conformed.extra["original_sampling_rate"]) == (
        5000,
        3668,
        400.0,
    )


def test_exams_give_patients_classes_and_statements(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = (
        "1000104,66,False,60.1,True,False,False,False,False,True,7,,,False,x.hdf5\n"
        "1000200,41,True,40,False,False,False,False,False,False,7,,,True,x.hdf5\n"
    )
    (folder / "exams.csv").write_text(EXAMS + rows)
    source = open_source("code15", folder)
    first, second, third = source.entries()
    assert "says otherwise than the headers" not in caplog.text, "one year is a way to count"
    assert first.meta["labels"] == {"chagas": (), "code15": ("1dAVb", "AF")}
    assert first.meta["statements"] == ("First degree AV block", "Atrial fibrillation")
    assert second.meta["labels"]["code15"] == () and second.meta["statements"] == ("Normal ECG",)
    assert (first.meta["age_years"], first.meta["sex"]) == (66.0, "female")
    assert first.meta["patient"] == second.meta["patient"] == patient_hash("7")
    assert third.meta["patient"] == patient_hash("exam 1000300") and "statements" not in third.meta
    assert "2 of 3 records have a row in exams.csv" in caplog.text and "'1000300'" in caplog.text
    assert source.describe()["tables"]["exams"]["rows"] == 2


def test_a_cell_that_is_not_understood_leaves_open_what_the_header_says_and_an_empty_one_does_not(folder: Path) -> None:
    rows = (
        "1000104,old,2,60,False,False,False,False,False,False,7,,,False,x.hdf5\n"
        "1000200,,,40,False,False,False,False,False,False,8,,,False,x.hdf5\n"
    )
    (folder / "exams.csv").write_text(EXAMS + rows)
    doubtful, silent, _ = open_source("code15", folder).entries()
    assert (doubtful.meta["age_years"], doubtful.meta["sex"]) == (None, None)
    assert (silent.meta["age_years"], silent.meta["sex"]) == (41.0, "male")


def test_a_table_sorted_by_one_column_contradicts_ages_and_sexes_of_the_headers(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = (
        "1000200,66,False,60.1,True,False,False,False,False,True,7,,,False,x.hdf5\n"
        "1000104,41,True,40,False,False,False,False,False,False,7,,,True,x.hdf5\n"
    )
    (folder / "exams.csv").write_text(EXAMS + rows)
    list(open_source("code15", folder).entries())
    assert "the table says otherwise than the headers of 2 (age) and 2 (sex) of 3 records" in caplog.text


def test_a_class_that_is_neither_true_nor_false_is_refused(folder: Path) -> None:
    (folder / "exams.csv").write_text(EXAMS + "1000104,66,False,60,perhaps,False,False,False,False,True,7,,,False,x\n")
    with pytest.raises(DataError, match="column 1dAVb holds 'perhaps'"):
        list(open_source("code15", folder).entries())


def test_real_code15_records_read(real_data: Path) -> None:
    source = open_source("code15", real_data / "code15")
    records = [source.read(entry) for entry in source.entries()]
    assert len(records) == 60 and {record.sampling_rate for record in records} == {400.0}
    assert {record.samples for record in records} == {1926, 2026, 2072, 2934, 3874, 4096}
    assert sum(record.labels["chagas"] == ("Chagas",) for record in records) == 9
    assert all(record.age_years and record.sex for record in records)
