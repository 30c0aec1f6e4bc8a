"""Age and sex as the houses write them: in comments of headers, with and without units, and what is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.shared.demographics import (
    age_in_years,
    header_comments,
    iso_time,
    person,
    sex_in_words,
)
from tests.support.wfdb_files import ecg_counts, write_record


@pytest.mark.parametrize(
    ("comment", "age", "sex"),
    [
        ("#<age>: 65 <sex>: F <diagnoses> Coronary artery disease, arterial hypertension", 65.0, "female"),
        ("#<age>: 51\n#<sex>: M", 51.0, "male"),
        ("#Age: 59\n#Sex: Male\n#Dx: 164889003", 59.0, "male"),
        ("# Age: 65\n# Sex: f", 65.0, "female"),
        ("# Age=65\n# Gender=Female", 65.0, "female"),
        ("# age: 81\n# sex: female\n# ECG date: 01/10/1990", 81.0, "female"),
        ("# Sex: F, Age: 65", 65.0, "female"),
        ("# Patient: 7; Age: 65y; Sex: M", 65.0, "male"),
        ("# Age: 65 Sex: Female", 65.0, "female"),
        ("# Age (months): 6\n# Sex: M", 0.5, "male"),
        ("# Patient age: 44", 44.0, None),
        ("# Age: NaN\n# Sex: Unknown", None, None),
        ("# Age: 300\n# Sex: NaN", 90.0, None),
        ("# Age: > 89", 90.0, None),
        ("# Sex: 1", None, None),
        ("# History: mother's age: 70", None, None),
        ("# Average: 33\n# Message: F", None, None),
        ("# Age: 65\n# Sex: F\n# Age: 34\n# Gender: female", None, "female"),
        ("# Age: 65\n# Age: 34\n# Age: 65", None, None),
        ("#<age>: 65 <sex>: F\n# Sex: M", 65.0, None),
        ("# Age: NaN\n# Age: 65\n# Sex: 1\n# Sex: M", 65.0, "male"),
        ("# Age: 65\n# Patient age: 65.4 years", 65.0, None),
        ("# Reason: caf\x85 au lait\x1c noted\n# Age: 12", 12.0, None),
    ],
)
def test_the_comments_of_every_house_give_age_and_sex(
    tmp_path: Path, comment: str, age: float | None, sex: str | None
) -> None:
    header = tmp_path / "r.hea"
    header.write_bytes(f"r 1 500 10\nr.dat 16\n{comment}\n".encode("latin-1"))
    assert person(header_comments(header)) == {"age_years": age, "sex": sex}


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_lines_end_where_systems_end_them_and_nowhere_else(tmp_path: Path, line_end: str) -> None:
    (tmp_path / "r.hea").write_bytes(
        line_end.join(["r 1 500 10", "# note: a\x85# Age: 3\x0b", "# Age: 40"]).encode("cp1252", "ignore")
    )
    comments = header_comments(tmp_path / "r.hea")
    assert comments["age"] == "40"


@pytest.mark.parametrize(
    ("text", "years"),
    [
        *((text, 65.0) for text in ("65Y", "065Y", "65 years", "65 years old", "65yo", "65.", " '65' ")),
        *((text, 90.0) for text in (">89", "over 89", "300", "300.0", "90+")),
        *((text, None) for text in ("nan", "9" * 5000, "-1", "old", "", "131")),
        ("006M", 0.5),
        ("7,5", 7.5),
        ("89+", 89.0),
    ],
)
def test_ages_in_every_spelling(text: str, years: float | None) -> None:
    assert age_in_years(text) == years


@pytest.mark.parametrize(
    ("text", "unit", "years"),
    [("1,050", "days", None), ("1,050 d", "years", None), ("1,500", "weeks", None), ("1,050", "months", None),
     ("1,050", "years", 1.05), ("51,000", "years", 51), ("7,25", "months", 7.25 / 12),
     ("0,125", "days", 0.125 / 365.25), ("1.125", "days", 1.125 / 365.25)],
)  # fmt: skip
def test_a_comma_that_may_stand_between_thousands_is_no_decimal_mark(text: str, unit: str, years: float | None) -> None:
    assert age_in_years(text, unit) == (years if years is None else pytest.approx(years))


@pytest.mark.parametrize(
    ("text", "sex"),
    [("M", "male"), ("'Female'", "female"), ("w", "female"), ("m\u00e4nnlich", "male"), ("1", None), ("", None)],
)
def test_sexes_in_words(text: str, sex: str | None) -> None:
    assert sex_in_words(text) == sex


def test_words_for_age_and_sex_that_are_not_understood_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, comment in (("a", "Sex: 1"), ("b", "Sex: 1"), ("c", "Age: elderly"), ("d", "Age: NaN")):
        write_record(tmp_path / name, ecg_counts(100), comments=[comment])
    write_record(tmp_path / "e", ecg_counts(100), comments=["Age: 65", "Age: 34"])
    list(open_source("wfdb", tmp_path).entries())
    assert (
        "age, sex or time not understood source=wfdb number=4: 'sex: 1' x 2, 'age: elderly' x 1, 'age: 65 or 34' x 1"
        in caplog.text
    )


def test_a_pipe_in_the_place_of_a_header_says_nothing_and_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "r.hea")
    assert header_comments(tmp_path / "r.hea") == {}


@pytest.mark.parametrize(
    ("text", "time"),
    [("2180-07-23 08:44:00", "2180-07-23T08:44:00"), ("2180-07-23T08:44:00Z", "2180-07-23T08:44:00Z"),
     ("2180/7/23 8:44", "2180-07-23T08:44:00"), ("2180.07.23", "2180-07-23"), ("2180-07-23", "2180-07-23"),
     ("23/07/2180 8:44", None), ("07/23/2180 8:44 AM", None), ("2180-13-01", None), ("2180/7/23 25:00", None),
     ("", None), ("44567.36", None), ("20210301", "2021-03-01"), ("20210301T0800", "2021-03-01T08:00:00"),
     ("2021-W09-1", "2021-03-01"), ("2021-03-01 08:00:00+02:00", "2021-03-01T08:00:00+02:00"),
     ("1712010100845", None), ("1614585600", None), ("20210301080000", None)],
)  # fmt: skip
def test_a_time_that_begins_with_its_year_is_one_and_no_other_is_guessed(text: str, time: str | None) -> None:
    assert iso_time(text) == time
