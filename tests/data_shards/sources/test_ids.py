"""One id has many spellings, and one place reads them."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from cardialign.data_shards.sources.shared.ids import is_rounded, plain_id


@pytest.mark.parametrize(
    "text",
    [
        "40689238",
        "40689238.0", "40689238.00", "40689238.", " 40689238 ", "\t40689238\r", "'40689238'", '"40689238.0"',
        "+40689238", "4.0689238e7", "4.0689238E+07", "4.068923800000000000e+07", "\ufeff40689238", "40689238\u00a0",
        "\u201c40689238\u201d", '="40689238"', ' ="40689238.0"', "'40689238", "='40689238'",
    ],
)  # fmt: skip
def test_a_number_is_the_same_id_however_a_tool_writes_it(text: str) -> None:
    assert plain_id(text) == "40689238"


def test_what_pandas_and_numpy_write_of_a_column_with_a_gap_is_the_column() -> None:
    studies = [40689238, 44458630, 49036311]
    through_pandas = pd.DataFrame({"study_id": [*studies, None]}).to_csv(index=False).splitlines()[1:-1]
    assert [plain_id(text) for text in through_pandas] == [str(study) for study in studies] != through_pandas
    written = io.StringIO()
    np.savetxt(written, np.array(studies, dtype=float))
    assert [plain_id(text) for text in written.getvalue().split()] == [str(study) for study in studies]


@pytest.mark.parametrize("text", ["", " ", "nan", "NaN", "<NA>", "NULL", "None", "N/A", "#N/A", "NaT", '""'])
def test_what_tools_write_for_nothing_is_no_id(text: str) -> None:
    assert plain_id(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "007",
        "1.2.840.113619.1",
        "1.5",
        "-7",
        "JS00001",
        "a.0b",
        "12e5",
        "0",
        "1e5",
        "4e0",
        "4E0",
        "9e1",
        "x" * 5000,
        "'t Hart",
        "=7",
        "=A1",
        "a='7'",
    ],
)
def test_what_is_written_plainly_stays(text: str) -> None:
    assert plain_id(text) == text


def test_zeros_in_front_stay_for_they_may_tell_records_apart() -> None:
    assert plain_id('="007"') == plain_id("'007") == plain_id("007.0") == plain_id("007") != plain_id("7")


def test_a_uuid_is_one_in_either_case_and_with_braces() -> None:
    low = "0f8fad5b-d9cb-469f-a165-70867728950e"
    assert plain_id(low.upper()) == plain_id("{" + low.upper() + "}") == low
    assert plain_id("ABC") != plain_id("abc")


def test_an_umlaut_of_two_characters_is_one() -> None:
    assert plain_id("Mu\u0308ller") == plain_id("M\u00fcller") == "M\u00fcller"


@pytest.mark.parametrize(("text", "letter"), [("s40689238", "s"), ("S40689238", "s"), ("p40689238.0", "p")])
def test_the_letter_of_a_data_set_is_no_part_of_the_number(text: str, letter: str) -> None:
    assert plain_id(text, letter) == "40689238" and plain_id(text) != "40689238"


@pytest.mark.parametrize("text", ["4.07E+07", "4.068924e+07", "1E+07"])
def test_a_number_that_lost_its_last_digits_is_no_id_at_all(text: str) -> None:
    assert is_rounded(text) and plain_id(text) == text
    assert not is_rounded("4.0689238e7") and not is_rounded("12e5") and not is_rounded("40689238")


@pytest.mark.parametrize("text", ["4.00E+00", "1.00E+02", "1.20E+01", "4.00E-02"])
def test_what_a_spreadsheet_made_of_a_study_id_such_as_4e0_is_no_other_id(text: str) -> None:
    assert is_rounded(text) and plain_id(text) == text
    assert plain_id("4.000000000000000000e+00") == "4" and not is_rounded("4.000000000000000000e+00")  # numpy's 4


@pytest.mark.parametrize("digits", [19, 4300, 5000])
def test_a_number_of_any_length_is_an_id(digits: int) -> None:
    assert plain_id("9" * digits + ".0") == "9" * digits and plain_id("9." + "9" * digits + "e+99") != ""
