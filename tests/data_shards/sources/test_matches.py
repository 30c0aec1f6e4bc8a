"""Every join tells how many records found their row: in the log, in the summary and in the manifest; a join that fits
nearly nothing stops the build."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.data_shards.build.build import BuildSummary, SetPlan, build_shards
from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources import open_source
from tests.support.wfdb_files import ecg_counts, write_record

SALT = "a salt that nobody guesses"
SUBJECTS, STUDIES = (10000032, 10000033, 10000034), (40689238, 40689239, 40689240)
REPORTS = ",".join(f"report_{k}" for k in range(18))


def mimic(root: Path, study: str = "{}", subject: str = "{}", listed: str = "{}") -> Path:
    """Three records of three patients; `study`, `subject`: how the measurements and patients write an id, `listed` how
    the record list writes a study."""
    rows, measured, patients = [], [], []
    for number, (who, what) in enumerate(zip(SUBJECTS, STUDIES, strict=True)):
        path = f"files/p1000/p{who}/s{what}/{what}"
        write_record(root / path, ecg_counts(1000, seed=number))
        rows.append(f"{who},{listed.format(what)},{what},2180-07-23 08:44:00,{path}")
        measured.append(f"{study.format(what)},Sinus rhythm,Finding {number}" + "," * 16)
        patients.append(f"{subject.format(who)},F,{50 + number},2180")
    (root / "record_list.csv").write_text("\n".join(["subject_id,study_id,file_name,ecg_time,path", *rows, ""]))
    (root / "machine_measurements.csv").write_text("\n".join([f"study_id,{REPORTS}", *measured, ""]))
    (root / "patients.csv").write_text("\n".join(["subject_id,gender,anchor_age,anchor_year", *patients, ""]))
    return root


def made(out: Path, source: str, root: Path, **options: Any) -> tuple[BuildSummary, ShardSet]:
    opened = open_source(source, root, salt=SALT, **options)
    summary = build_shards(opened, out, SetPlan(SignalSpec(500, 2)), workers=1)
    return summary, ShardSet.open(out)


@pytest.mark.parametrize(
    ("study", "subject", "listed"),
    [("{}", "{}", "{}"), ("{}.0", "{}.0", "{}"), ("s{}", "p{}", "{}"), (" {}", "'{}'", "{}.0"), ("{}", "{}", "s{}")],
)
def test_ids_of_mimic_are_joined_however_its_tables_went_through_other_tools(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, study: str, subject: str, listed: str
) -> None:
    summary, shards = made(tmp_path / "set", "mimic-iv-ecg", mimic(tmp_path / "src", study, subject, listed))
    for number in range(3):
        record = shards.read_record(number)
        assert (record.key, record.statements) == (f"mimic-{STUDIES[number]}", ("Sinus rhythm", f"Finding {number}"))
        assert (record.age_years, record.sex) == (50.0 + number, "female")
    assert summary.joins == {"reports": "3 of 3", "patients": "3 of 3"} and caplog.text == ""
    kept = json.loads((tmp_path / "set/manifest.json").read_text())["source"]["joins"]
    assert kept["reports"] == {"table": "machine_measurements.csv", "matched": 3, "of": 3, "rows": 3}


def test_a_patient_is_one_whether_the_list_writes_him_as_a_number_or_a_float(tmp_path: Path) -> None:
    plain, floats = mimic(tmp_path / "plain"), mimic(tmp_path / "floats")
    text = (floats / "record_list.csv").read_text()
    for who in SUBJECTS:
        text = text.replace(f"\n{who},", f"\n{who}.0,")
    (floats / "record_list.csv").write_text(text)
    patients = [[e.meta["patient"] for e in open_source("mimic-iv-ecg", root).entries()] for root in (plain, floats)]
    assert patients[0] == patients[1] and len(set(patients[0])) == 3


def test_reports_of_other_records_stop_the_build_unless_told_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = mimic(tmp_path / "src", study="9{}")
    with pytest.raises(DataError, match=r"reports do not fit: 0 of 3 records .*machine_measurements.csv") as caught:
        made(tmp_path / "set", "mimic-iv-ecg", root)
    assert "'40689238'" in caught.value.problem and "--min-matched 0" in caught.value.remedy
    assert not (tmp_path / "set").exists()
    summary, shards = made(tmp_path / "set", "mimic-iv-ecg", root, min_matched="0")
    assert summary.joins["reports"] == "0 of 3" and len(shards) == 3 and "0 of 3 records have a row" in caplog.text


def numbered(root: Path, number: int) -> Path:
    root.mkdir()
    for each in range(number):
        np.save(root / f"r{each:03d}.npy", ecg_counts(100, gain=1000) / 1000)
    return root


@pytest.mark.parametrize(
    ("matched", "level"), [(100, "INFO"), (95, "INFO"), (94, "WARNING"), (5, "WARNING"), (4, None)]
)
def test_a_join_warns_below_95_and_stops_below_5_of_100(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, matched: int, level: str | None
) -> None:
    caplog.set_level(logging.INFO)
    root = numbered(tmp_path / "src", 100)
    rows = [f"r{each:03d},40" if each < matched else f"x{each},40" for each in range(100)]
    (tmp_path / "t.csv").write_text("\n".join(["id,age", *rows, ""]))
    source = open_source(
        "arrays", root, salt=SALT, sampling_rate=500, table=tmp_path / "t.csv", key_column="id", age_column="age"
    )
    if level is None:
        with pytest.raises(DataError, match="4 of 100 records have a row"):
            list(source.entries())
        return
    assert len(list(source.entries())) == 100
    (told,) = [each for each in caplog.records if f"{matched} of 100 records have a row in t.csv" in each.getMessage()]
    assert told.levelname == level


def test_labels_for_a_part_of_the_records_are_no_lost_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = numbered(tmp_path / "src", 50)
    (tmp_path / "t.csv").write_text("record,label_set,label\nr001,x,A\nr002.npy,x,B\n./r003.npy,x,C\n")
    source = open_source("arrays", root, salt=SALT, sampling_rate=500, labels=tmp_path / "t.csv")
    labels = [entry.meta.get("labels") for entry in source.entries()]
    assert labels[1:4] == [{"x": ("A",)}, {"x": ("B",)}, {"x": ("C",)}] and labels.count(None) == 47
    assert caplog.text == "" and source.describe()["joins"]["labels"]["matched"] == 3
    (tmp_path / "t.csv").write_text(
        "record,label_set,label\n" + "".join(f"q{k},x,A\n" for k in range(9)) + "r001,x,A\n"
    )
    list(open_source("arrays", root, salt=SALT, sampling_rate=500, labels=tmp_path / "t.csv").entries())
    assert "1 of 50 records have a row in t.csv, which names 10" in caplog.text


def test_labels_of_mimic_are_found_under_floats_and_letters(tmp_path: Path) -> None:
    root = mimic(tmp_path / "src")
    (tmp_path / "t.csv").write_text("study_id,label_set,label\n40689238.0,x,A\ns40689239,x,B\n40689239,x,C\n")
    labels = [e.meta.get("labels") for e in open_source("mimic-iv-ecg", root, labels=tmp_path / "t.csv").entries()]
    assert labels == [{"x": ("A",)}, {"x": ("B", "C")}, None]


@pytest.mark.parametrize("age", ["9" * 5000, "1e999", "131", "x"])
def test_an_age_of_a_table_that_nobody_has_is_unknown(tmp_path: Path, age: str) -> None:
    root = mimic(tmp_path / "src")
    (root / "patients.csv").write_text(f"subject_id,gender,anchor_age,anchor_year\n10000032,F,{age},2180\n")
    first, *_ = open_source("mimic-iv-ecg", root).entries()
    assert (first.meta["age"], first.meta["sex"]) == (None, "female")


@pytest.mark.parametrize(
    ("age", "anchor", "is_told"), [(52, 2999, True), (52, 1900, True), (0, 2182, True), (0, 2181, False)]
)
def test_an_age_that_the_years_make_impossible_is_unknown_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, age: int, anchor: int, is_told: bool
) -> None:
    """ECG of 2180: 52 years in 2999 would be -767 years, which is no newborn."""
    root = mimic(tmp_path / "src")
    (root / "patients.csv").write_text(f"subject_id,gender,anchor_age,anchor_year\n10000032,F,{age},{anchor}\n")
    first, *_ = open_source("mimic-iv-ecg", root, min_matched=0).entries()
    assert first.meta["age"] == (None if is_told else 0.0)
    assert (f"left out: {age + 2180 - anchor} years in 2180 x" in caplog.text) is is_told


def test_rows_of_one_id_that_say_different_things_are_named_in_every_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = mimic(tmp_path / "src")
    with (root / "machine_measurements.csv").open("a") as file:
        file.write("40689238.0,Atrial fibrillation" + "," * 17 + "\n40689239,Sinus rhythm,Finding 1" + "," * 16 + "\n")
    with (root / "patients.csv").open("a") as file:
        file.write("10000033,M,51,2180\n10000034,F,52,2180\n")
    first, *_ = open_source("mimic-iv-ecg", root).entries()
    assert first.meta["statements"] == ("Sinus rhythm", "Finding 0")
    assert "1 ids stand in several rows of machine_measurements.csv" in caplog.text and "'40689238'" in caplog.text
    assert "1 ids stand in several rows of patients.csv" in caplog.text and "'10000033'" in caplog.text


def test_ids_that_a_spreadsheet_rounded_make_no_patients(tmp_path: Path) -> None:
    root = numbered(tmp_path / "src", 2)
    (tmp_path / "t.csv").write_text("id,person\nr000,1.00E+07\nr001,1.00E+07\n")
    source = open_source("arrays", root, table=tmp_path / "t.csv", key_column="id", patient_column="person")
    with pytest.raises(DataError, match=r"'1\.00E\+07', a number whose last digits are lost"):
        list(source.entries())


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "half"])
def test_a_share_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match="min_matched"):
        open_source("arrays", numbered(tmp_path / "src", 1), min_matched=value)


@pytest.mark.parametrize(("salt", "said"), [("", "with no salt"), ("short", "a salt of only 5 characters"), (SALT, "")])
def test_a_hash_that_can_be_undone_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, salt: str, said: str
) -> None:
    list(open_source("arrays", numbered(tmp_path / "src", 1), sampling_rate=500, salt=salt).entries())
    assert (said in caplog.text) if said else not caplog.text
    assert salt not in caplog.text or not salt


def test_exams_of_code15_are_joined_when_their_ids_became_floats(tmp_path: Path) -> None:
    for exam in (1000104, 1000200):
        write_record(tmp_path / str(exam), ecg_counts(1000))
    header = "exam_id,age,is_male,normal_ecg,patient_id,1dAVb,RBBB,LBBB,SB,ST,AF\n"
    rows = "1000104.0,66.0,False,False,7.0,True,False,False,False,False,False\n1000200.0,41,True,True,7" + ",False" * 6
    (tmp_path / "exams.csv").write_text(f"{header}{rows}\n1000200,42,True,True,7{',False' * 6}\n")
    source = open_source("code15", tmp_path)
    first, second = source.entries()
    assert first.meta["statements"] == ("First degree AV block",) and second.meta["statements"] == ("Normal ECG",)
    assert first.meta["patient"] == second.meta["patient"] and second.meta["age_years"] == 41
    assert source.describe()["joins"]["exams"] == {"table": "exams.csv", "matched": 2, "of": 2, "rows": 2}


def test_ids_of_ptb_xl_that_became_floats_are_the_same_records_and_patients(tmp_path: Path) -> None:
    listed = []
    for folder, form in (("plain", "{}"), ("floats", "{}.0")):
        root = tmp_path / folder
        write_record(root / "records500/00001_hr", ecg_counts(1000))
        columns = "ecg_id,patient_id,age,sex,recording_date,report,scp_codes,strat_fold,filename_lr,filename_hr"
        words = [
            form.format(1),
            form.format(15709),
            "56.0",
            form.format(1),
            "1984-11-09 09:17:34",
            "",
            "{'NORM': 100.0}",
        ]
        row = ",".join([*words[:6], f'"{words[6]}"', form.format(3), "records100/x", "records500/00001_hr"])
        (root / "ptbxl_database.csv").write_text(f"{columns}\n{row}\n")
        statements = (
            "description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\nNORM,normal ECG,1,,,NORM,NORM\n"
        )
        (root / "scp_statements.csv").write_text("," + statements)
        listed.append(list(open_source("ptb-xl", root).entries()))
    assert listed[0] == listed[1] and listed[0][0].meta["fold"] == 3 and listed[0][0].meta["sex"] == "female"
