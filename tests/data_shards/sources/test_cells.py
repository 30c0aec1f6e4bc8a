"""Cells of a user's own table: labels in the forms that other tools write, empty rows of spreadsheets, switches."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.shared.labels import read_labels
from tests.support.wfdb_files import ecg_counts, write_record

RECORDS = ("r1", "r2", "r3")


def test_labels_in_several_columns_are_those_of_one(tmp_path: Path) -> None:
    for record in RECORDS:
        write_record(tmp_path / "records" / record, ecg_counts())
    table = tmp_path / "t.csv"
    table.write_text('id,first,"second, if any",more\nr1,LVH,AF,"MI;AF"\nr2,,,\nr3,[],,[]\n')
    given = {"table": table, "key_column": "id", "label_separator": ";"}

    def read(columns: str) -> list[Any]:
        entries = open_source("wfdb", tmp_path / "records", **given, labels_column=columns).entries()
        return [entry.meta.get("labels", {}).get("labels") for entry in entries]

    assert read("first, more") == [("LVH", "MI", "AF"), None, ()]
    assert read("second, if any") == [("AF",), None, None], "a name with a comma is one column"
    table.write_text("id,first,more\nr1,['LVH'],AF\nr2,AF,\nr3,AF,\n")
    with pytest.raises(DataError, match="row 1: a list of labels stands in one of several columns"):
        read("first,more")


def labels(folder: Path, cells: list[Any], **options: str) -> list[Any]:
    for record in RECORDS:
        write_record(folder / "records" / record, ecg_counts())
    pd.DataFrame({"id": RECORDS, "dx": cells}).to_csv(folder / "t.csv", index=False)
    given = {"table": folder / "t.csv", "key_column": "id", "labels_column": "dx", **options}
    entries = open_source("wfdb", folder / "records", **given).entries()
    return [entry.meta.get("labels", {}).get("labels") for entry in entries]


def test_lists_of_python_and_json_are_their_labels(tmp_path: Path) -> None:
    python = pd.Series([["AF", "SR"], [], ["SR"]])
    assert labels(tmp_path, python.map(str).tolist()) == [("AF", "SR"), (), ("SR",)]
    assert labels(tmp_path, ['["AF", "SR"]', "[]", "[59118001]"]) == [("AF", "SR"), (), ("59118001",)]
    assert labels(tmp_path, ["AF|SR", "{'SR'}", "[AF]|SR"]) == [("AF", "SR"), ("SR",), ("[AF]", "SR")]


def test_tuples_empty_sets_and_arrays_of_numpy_are_their_labels(tmp_path: Path) -> None:
    arrays = pd.Series([np.array(["AF", "SR"]), np.array(["SR "], dtype=object), np.array(["it's AF ", "SR"])])
    assert arrays.map(str)[0] == "['AF' 'SR']", "numpy writes no commas"
    assert labels(tmp_path, arrays.map(str).tolist()) == [("AF", "SR"), ("SR",), ("it's AF", "SR")]
    assert labels(tmp_path, [str(("AF", "SR")), str(("SR",)), str(set())]) == [("AF", "SR"), ("SR",), ()]
    assert labels(tmp_path, ["(AF)", "(AF", "AF (old)"]) == [("(AF)",), ("(AF",), ("AF (old)",)], "no tuples of Python"


def test_none_of_the_labels_can_be_said_whatever_parts_them(tmp_path: Path) -> None:
    assert labels(tmp_path, ["AF;SR", "[]", "SR"], label_separator=";") == [("AF", "SR"), (), ("SR",)]


def test_rows_without_a_label_are_told_as_not_labelled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert labels(tmp_path, ["AF", None, "-"]) == [("AF",), None, None]
    assert "column='dx' says nothing of 2 of 3 records: they are not labelled" in caplog.text
    caplog.clear()
    labels(tmp_path, ["AF", "[]", "SR"])
    assert "says nothing of" not in caplog.text


@pytest.mark.parametrize("cell", ["{'NORM': 100.0}", "[AF, SR]", "[[1]]", "[1, None]", "[" * 20_000 + "]"])
def test_a_cell_that_only_looks_like_a_list_is_refused_with_its_row(tmp_path: Path, cell: str) -> None:
    with pytest.raises(DataError, match=r"t\.csv: row 2: the labels .* are no list of words"):
        labels(tmp_path, ["AF", cell, "SR"])
    assert labels(tmp_path, ["AF", "[a; b]", "SR"], label_separator=";")[1] == ("[a", "b]"), "a separator that is given"


@pytest.mark.parametrize(
    "label", ["not AF", "no AF", "AF: no", "!AF", "AF?", "?AF", "ruled out AF", "AF absent", "Possible AF"]
)
def test_a_label_that_denies_or_doubts_a_finding_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, label: str
) -> None:
    assert labels(tmp_path, ["AF", label, "SR"])[1] == (label,)
    assert (
        f"say that a record has not, or perhaps, what they name, and count as labels of their own: {label!r} x 1"
        in (caplog.text)
    )


def test_names_of_findings_deny_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels(tmp_path, ["normal ECG|nodal rhythm", "NORM|notched P|NST_", "non-specific ST change|1AVB|no"])
    assert "count as labels of their own" not in caplog.text


def test_marks_alone_say_nothing(tmp_path: Path) -> None:
    assert labels(tmp_path, ["-", "|", "AF|-"]) == [None, None, ("AF",)]


def test_a_column_of_switches_and_one_label_in_two_cases_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels(tmp_path, ["1", "0", "1"])
    assert "column='dx' holds only '1', '0': if it says whether a record has one finding" in caplog.text
    caplog.clear()
    labels(tmp_path, ["AF", "af", "SR|AF"])
    assert "column='dx' differ in capitals or marks alone: 'AF' x 2, 'af' x 1" in caplog.text
    caplog.clear()
    labels(tmp_path, ["AF", "SR", "1"])
    assert "column='dx'" not in caplog.text


def test_empty_rows_at_the_end_are_a_spreadsheets_and_one_in_between_is_named(tmp_path: Path) -> None:
    assert labels(tmp_path, ["AF", "AF", "SR"]) == [("AF",), ("AF",), ("SR",)]
    table, given = tmp_path / "t.csv", {"key_column": "id", "labels_column": "dx"}
    table.write_text(table.read_text() + ",\n , \n")
    source = open_source("wfdb", tmp_path / "records", table=table, **given)
    assert len(list(source.entries())) == 3 and source.describe()["tables"]["records"]["rows"] == 3
    table.write_text("id,dx\nr1,AF\n,\nr2,SR\n")
    with pytest.raises(DataError, match="row 2 is empty"):
        list(open_source("wfdb", tmp_path / "records", table=table, **given).entries())


@pytest.mark.parametrize("kind", ["an Excel workbook", "a Parquet file", "a gzip file"])
def test_a_table_of_another_kind_is_named(tmp_path: Path, kind: str) -> None:
    # the time of the entry is bytes of the first line: this one makes it read as one column of text
    moment = (2026, 11, 26, 1, 18, 0)
    write_record(tmp_path / "records" / "r1", ecg_counts())
    frame, table = pd.DataFrame({"id": ["r1"]}), tmp_path / "t.csv"
    if "Parquet" in kind:
        frame.to_parquet(table)
    elif "gzip" in kind:
        frame.to_csv(table.with_suffix(".csv.gz"))
        table.with_suffix(".csv.gz").rename(table.with_suffix(".zipped"))
        table = table.with_suffix(".zipped")
    else:
        with zipfile.ZipFile(table, "w") as book:
            book.writestr(zipfile.ZipInfo("[Content_Types].xml", moment), "<Types/>")
    with pytest.raises(DataError, match=f"is {kind}.* no CSV"):
        list(open_source("wfdb", tmp_path / "records", table=table, key_column="id").entries())


def outside(folder: Path, rows: str) -> list[Any]:
    for record in RECORDS:
        write_record(folder / "records" / record, ecg_counts())
    (folder / "l.csv").write_text(f"record,label_set,label\n{rows}")
    entries = open_source("wfdb", folder / "records", labels=folder / "l.csv").entries()
    return [entry.meta.get("labels") for entry in entries]


def test_outside_labels_that_look_like_several_or_like_one_in_two_cases_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert outside(tmp_path, "r1,s,AF\nr2,s,af\nr3,s,AF|SR\n,,\n,,\n")[2] == {"s": ("AF|SR",)}
    assert "'AF' x 1, 'af' x 1" in caplog.text
    assert "look like several in one row, write a row for each: 'AF|SR' x 1" in caplog.text


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (("AF-fib", "AF_fib", "af fib"), "'AF-fib' x 1, 'AF_fib' x 1, 'af fib' x 1"),
        (("I48.0", "I480"), "'I48.0' x 1, 'I480' x 1"),
        (("427.31", "42731"), "'427.31' x 1, '42731' x 1"),
        (("AF", "A\u200dF"), "'AF' x 1, 'A\\u200dF' x 1"),
        (("1.5", "15"), ""),
        (("ST+", "ST-"), ""),
        (("V1", "V2"), ""),
    ],
)
def test_labels_that_differ_in_marks_alone_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, labels: Sequence[str], told: str
) -> None:
    outside(tmp_path, "".join(f"r{k % 3 + 1},s,{label}\n" for k, label in enumerate(labels)))
    assert ("differ in capitals or marks alone" in caplog.text) == bool(told)
    assert told in caplog.text


def test_numbers_for_yes_and_no_that_nobody_can_tell_apart_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "l.csv").write_text("record,label_set,label,present\nr1,s,AF,1\nr2,s,AF,2\n")
    read_labels(tmp_path / "l.csv", "record")
    assert "whatever the column 'present' says of it (1 to 2)" in caplog.text


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("value", "1010"),
        ("present", ["True", "False", "True", ""]),
        ("LIKELIHOOD", ["80", "0.0", "100", "15"]),
        ("af", ["T", "F", "T", ""]),
        ("assertion", ["present", "absent", "possible"]),
        ("finding", ["positive", "Negative", "positive"]),
        ("vorhanden", ["ja", "nein", ""]),
        ("chexpert", ["1", "-1", "1.0"]),
        ("state", ["confirmed", "deleted", "confirmed"]),
        ("how sure", ["100%", "0%", "50 %"]),
    ],
)
def test_labels_melted_from_a_wide_table_are_refused_where_a_row_says_what_is_not_there(
    tmp_path: Path, column: str, cells: Sequence[str]
) -> None:
    rows = "".join(f"r{k % 3 + 1},s,L{k},{cell}\n" for k, cell in enumerate(cells))
    (tmp_path / "l.csv").write_text(f"record,label_set,label,{column}\n{rows}")
    with pytest.raises(DataError, match=f"the column '{column}' says of some rows that they do not hold"):
        read_labels(tmp_path / "l.csv", "record")


@pytest.mark.parametrize("column", ["value,1,1", "sex,0,1", "strat_fold,0,1", "subject_id,100,0", "note,no,sure",
                                    "sex of the patient,F,F", "reader,T,W", "code,M,F"])  # fmt: skip
def test_columns_beside_the_labels_that_deny_none_are_left_alone(tmp_path: Path, column: str) -> None:
    name, *cells = column.split(",")
    (tmp_path / "l.csv").write_text(f"record,label_set,label,{name}\nr1,s,AF,{cells[0]}\nr2,s,AF,{cells[1]}\n")
    assert read_labels(tmp_path / "l.csv", "record")[0] == {"r1": {"s": ("AF",)}, "r2": {"s": ("AF",)}}


@pytest.mark.parametrize(("rows", "options"), [("r1,S,AF\nr2,s,SR\n", {}), ("r1,Labels,AF\n", {"own": "labels"})])
def test_label_sets_that_differ_in_capitals_alone_are_refused(
    tmp_path: Path, rows: str, options: dict[str, str]
) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "l.csv").write_text(f"record,label_set,label\n{rows}")
    (tmp_path / "t.csv").write_text("id,lab\nr1,AF\n")
    own = {"table": tmp_path / "t.csv", "key_column": "id", "labels_column": "lab"} if options else {}
    with pytest.raises(DataError, match=r"the label sets '(\w+)' and '(\w+)' differ in capitals alone"):
        open_source("wfdb", tmp_path / "records", labels=tmp_path / "l.csv", **own)


@pytest.mark.parametrize("name", ["a:b", ":", "a\x07b"])
def test_a_label_set_whose_name_would_become_part_of_its_codes_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="holds a colon, or what cannot be shown"):
        outside(tmp_path, f"r1,{name},AF\n")


def test_a_record_labelled_with_nothing_and_with_something_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "l.csv").write_text("record,label_set,label\nr1,s,AF\nr1,s,\nr2,s,\nr3,s,MI\n")
    assert read_labels(tmp_path / "l.csv", "record")[0] == {"r1": {"s": ("AF",)}, "r2": {"s": ()}, "r3": {"s": ("MI",)}}
    assert "1 records have a row with an empty label" in caplog.text and "'r1'" in caplog.text


@pytest.mark.parametrize("other", ["426783006.0", "4.26783006e+08", "'426783006'", " 426783006\u00a0"])
def test_a_code_is_one_label_however_it_is_written(tmp_path: Path, other: str) -> None:
    for number, found in enumerate(
        (
            outside(tmp_path / "outside", f"r1,s,426783006\nr2,s,{other}\n"),
            [{"s": each} for each in labels(tmp_path / "own", ["426783006", other, "x"])],
        )
    ):
        assert found[:2] == [{"s": ("426783006",)}] * 2, number


def test_codes_whose_last_digits_a_spreadsheet_took_are_refused(tmp_path: Path) -> None:
    """Sinus rhythm, sinus bradycardia and sinus arrhythmia (426783006, 426177001, 427393009) are all 4.3E+08 then."""
    with pytest.raises(DataError, match=r"the label '4\.27E\+08' is a number whose last digits are lost"):
        outside(tmp_path / "outside", "r1,s,4.27E+08\n")
    with pytest.raises(DataError, match=r"row 2: the label '4\.27E\+08'"):
        labels(tmp_path / "own", ["426783006", "4.27E+08", "427393009"])


def test_labels_made_of_other_labels_are_told_and_words_with_blanks_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = "r1,s,AF/SR\nr2,s,AF\nr2,s,SR\nr3,s,AF and SR\nr3,s,AF of old\nr3,s,N/A or so\n"
    assert outside(tmp_path, rows)[0] == {"s": ("AF/SR",)}
    assert "labels themselves; if a record has both, write each by itself: 'AF/SR' x 1, 'AF and SR' x 1" in caplog.text
    assert "of old" not in caplog.text and "or so" not in caplog.text


def test_a_column_of_shares_beside_the_labels_is_refused_at_0_and_told_above(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / "l.csv"
    table.write_text("record,label_set,label,p\nr1,s,AF,0.0\nr2,s,AF,0.97\n")
    with pytest.raises(DataError, match="the column 'p' says of some rows that they do not hold"):
        read_labels(table, "record")
    table.write_text("record,label_set,label,p\nr1,s,AF,0.03\nr2,s,AF,0.97\n")
    assert read_labels(table, "record").labels["r1"] == {"s": ("AF",)}
    assert "whatever the column 'p' says of it (0.03 to 0.97)" in caplog.text
    table.write_text("record,label_set,label,begins_s\nr1,s,AF,0.0\nr2,s,AF,3.5\n")
    assert len(read_labels(table, "record").labels) == 2, "seconds are no shares"
