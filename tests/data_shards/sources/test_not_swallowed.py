"""What a walk, a table or a name could take in without a word is told: files of other forms, rows behind an open quote,
strangers under one name, folds that a table leaves blank, several labels in one row."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.build.listing import write_listing
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.reading.tables import read_table, rows_of
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.vocabularies.scp import parse_scp_codes
from tests.support.wfdb_files import ecg_counts

MILLIVOLTS = (ecg_counts(300, gain=1000) / 1000).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    for name in ("r1", "r2", "r3", "r4"):
        np.save(tmp_path / "set" / f"{name}.npy", MILLIVOLTS)
    return tmp_path


def walked(folder: Path, rows: str = "", **options: str) -> list[object]:
    if rows:
        (folder / "t.csv").write_text(rows, encoding="utf-8")
        options["table"] = str(folder / "t.csv")
    source = open_source("arrays", folder / "set", sampling_rate=500, salt="a secret of sixteen", **options)
    entries = list(source.entries())
    return [entries, source.not_seen()]


def test_packed_records_and_recordings_of_other_forms_are_listed(folder: Path) -> None:
    for name in ("r5.csv.gz", "R6.NPY.GZ", "r7.npz.zip", "r8.edf", "r9.HDF5", "r10.dcm"):
        (folder / "set" / name).write_bytes(b"x")
    for name in ("README.txt", "LICENSE", "plan.pdf", "notes.gz"):
        (folder / "set" / name).write_bytes(b"x")
    entries, missed = walked(folder)
    assert len(entries) == 4
    assert sorted((each.path, each.reason) for each in missed) == [
        ("R6.NPY.GZ", "packed"), ("r10.dcm", "other-form"), ("r5.csv.gz", "packed"), ("r7.npz.zip", "packed"),
        ("r8.edf", "other-form"), ("r9.HDF5", "other-form"),
    ]  # fmt: skip


def test_a_packed_table_that_is_given_is_no_packed_record(folder: Path) -> None:
    (folder / "set" / "t.csv.gz").write_bytes(gzip.compress(b"rec,report\nr1,a\nr2,b\nr3,c\nr4,d\n"))
    table = str(folder / "set" / "t.csv.gz")
    assert walked(folder, table=table, key_column="rec", report_column="report")[1] == []


@pytest.mark.parametrize("packed", [False, True])
def test_a_quotation_mark_that_is_never_closed_is_refused_with_its_place(tmp_path: Path, packed: bool) -> None:
    text = 'rec,report\nr1,Normal\nr2,"Sinus rhythm\nr3,Atrial flutter\nr4,Normal\n'
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    with pytest.raises(DataError, match=r"never closed in column 'report', at 'Sinus rhythm'"):
        read_table(path, ("rec", "report"))
    with pytest.raises(DataError, match="never closed"):
        list(rows_of(path, ("rec", "report")))


def test_rows_within_a_field_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = 'rec,report\nr1,Normal\nr2,"Sinus rhythm\nr3,Atrial flutter\nr4,Pause of 3 s"\nr5,Normal\n'
    (tmp_path / "t.csv").write_text(text)
    assert len(list(rows_of(tmp_path / "t.csv", ("rec", "report")))) == 3
    assert "other rows in them table=t.csv rows=2: 'r3,Atrial flutter'" in caplog.text


def test_reports_of_several_lines_and_inches_are_no_open_quotes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = 'rec,report\nr1,"Normal,\nno change, as before"\nr2,electrode 2" lower\nr3,"1. Sinus\n2. LVH"\n'
    (tmp_path / "t.csv").write_text(text)
    table = read_table(tmp_path / "t.csv", ("rec", "report"))
    assert table.column("report").to_pylist() == [
        "Normal,\nno change, as before",
        'electrode 2" lower',
        "1. Sinus\n2. LVH",
    ]
    assert not caplog.text


@pytest.mark.parametrize("name", ["ANONYMOUS", "unknown", "-1"])
def test_a_name_that_stands_for_nobody_is_told(folder: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    walked(folder, f"rec,who\nr1,{name}\nr2,{name}\nr3,p3\nr4,p3\n", key_column="rec", patient_column="who")
    assert f"patients with many records source=arrays patients=1 of 4 records: '{name}' x 2" in caplog.text


def test_a_patient_with_a_large_part_of_a_set_is_told_and_others_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "set").mkdir()
    for number in range(60):
        (tmp_path / "set" / f"r{number}.npy").touch()
    rows = "".join(f"r{number},{'7' if number < 20 else number // 2}\n" for number in range(60))
    walked(tmp_path, "rec,who\n" + rows, key_column="rec", patient_column="who")
    assert "patients=1 of 60 records: '7' x 20" in caplog.text
    caplog.clear()
    rows = "".join(f"r{number},{number // 10}\n" for number in range(60))
    walked(tmp_path, "rec,who\n" + rows, key_column="rec", patient_column="who")
    assert "many records" not in caplog.text


def test_folds_that_nobody_is_in_are_refused_with_those_that_there_are(folder: Path) -> None:
    (folder / "t.csv").write_text("rec,fold\nr1,1\nr2,2\nr3,2\nr4,5\n")
    source = open_source(
        "arrays", folder / "set", sampling_rate=500, table=str(folder / "t.csv"), key_column="rec", fold_column="fold"
    )
    with pytest.raises(DataError, match=r"in folds \[9\]\n  remedy: its 4 records are in the folds 1, 2, 5"):
        write_listing(source, folder / "listing", 10, folds=(9,))


@pytest.mark.parametrize("label", ["AF,NORM", "AF;NORM", "AF; NORM", "AF|NORM", "['AF']"])
def test_several_labels_in_one_row_are_told(folder: Path, caplog: pytest.LogCaptureFixture, label: str) -> None:
    (folder / "l.csv").write_text("record,label_set,label\n" + "".join(f'r{k},a,"{label}"\n' for k in range(1, 5)))
    walked(folder, labels=str(folder / "l.csv"))
    assert f"look like several in one row, write a row for each: {label!r} x 4" in caplog.text


@pytest.mark.parametrize("label", ["Infarction, old", "QRS 0,12 s", "ST/T change"])
def test_a_label_of_several_words_is_one(folder: Path, caplog: pytest.LogCaptureFixture, label: str) -> None:
    (folder / "l.csv").write_text("record,label_set,label\n" + "".join(f'r{k},a,"{label}"\n' for k in range(1, 5)))
    walked(folder, labels=str(folder / "l.csv"))
    assert "several in one row" not in caplog.text


@pytest.mark.parametrize(
    "text", ["{'NORM': -1, 'SR': 100}", "{'NORM': 300}", "{'NORM': float('nan')}", "{'A': '1e999'}"]
)
def test_what_is_no_percentage_is_no_likelihood(text: str) -> None:
    """-1 is how label tables of other sets say "not this one"; taken for a statement it would be a positive."""
    with pytest.raises(ValueError, match="no dictionary of codes and likelihoods"):
        parse_scp_codes(text)
    assert parse_scp_codes("{'NORM ': 100.0, 'SR': 0.0}") == {"NORM": 100.0, "SR": 0.0}
