"""Cleaning keeps statements apart and in order, equal reports get equal keys, joining loses nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardialign.data_shards.report_text import clean_statements, join_statements, one_spelling, report_key


def test_gaps_of_any_kind_are_dropped_and_the_order_kept():
    raw = ["Sinus rhythm", None, math.nan, "", "  ", "***", "--- ---", "Abnormal ECG"]
    assert clean_statements(raw) == ("Sinus rhythm", "Abnormal ECG")


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Sinus rhythm.", "Sinus rhythm"),
        ("  Sinus \t rhythm ..", "Sinus rhythm"),
        ("*** INFERIOR INFARCT - POSSIBLY ACUTE ***", "INFERIOR INFARCT - POSSIBLY ACUTE"),
        (
            "*** EXTENSIVE INFARCT *** with possible acute lateral changes",
            "EXTENSIVE INFARCT with possible acute lateral changes",
        ),
        ("--- Pediatric criteria used ---", "Pediatric criteria used"),
        ("- frequent PVCs", "frequent PVCs"),
        ("Abnormal EKG", "Abnormal ECG"),
        ("*** x. ***", "x"),
        ("--- Technically unsatisfactory tracing ---*", "Technically unsatisfactory tracing"),
        ("(9@128) suggests early repolarization", "suggests early repolarization"),
        ("(9@192) - cannot rule out myocardial injury", "cannot rule out myocardial injury"),
        ("*** (9@128) paced ***", "paced"),
        ("(premature) beats", "(premature) beats"),
        ("Atrial flutter with varied AV block,", "Atrial flutter with varied AV block"),
        (
            "** INTERPRETATION MADE WITHOUT KNOWING PATIENT'S AGE **",
            "INTERPRETATION MADE WITHOUT KNOWING PATIENT'S AGE",
        ),
        ("Prolonged QT interval of 0.48 s", "Prolonged QT interval of 0.48 s"),
    ],
)
def test_decoration_goes_and_words_stay(raw, clean):
    assert clean_statements([raw]) == (clean,)


def test_marks_that_nobody_sees_go_and_the_joiners_of_other_scripts_stay():
    assert one_spelling("\ufeffa\u0308l\u00adter\u200b \u200eLa\u0308sion\u2060") == "\u00e4lter L\u00e4sion"
    assert one_spelling("\u0646\u200c\u0645 \u0915\u094d\u200d") == "\u0646\u200c\u0645 \u0915\u094d\u200d"
    assert (
        one_spelling("Sinus rhythm") == "Sinus rhythm"
        and one_spelling("ECG \u00b5V \u2265 2 \u00b2") == "ECG \u00b5V \u2265 2 \u00b2"
    )


@given(st.lists(st.one_of(st.none(), st.text())))
def test_cleaning_twice_is_cleaning_once(raw):
    once = clean_statements(raw)
    assert clean_statements(once) == once
    assert all(statement == statement.strip() and statement for statement in once)


def test_the_key_ignores_case_and_trailing_dots_but_not_order_or_borders():
    key = report_key(clean_statements(["Sinus rhythm.", "Normal ECG"]))
    assert key == report_key(clean_statements(["SINUS RHYTHM", "normal EKG."]))
    assert len(key) == 16
    assert int(key, 16) >= 0
    assert key != report_key(("Normal ECG", "Sinus rhythm"))
    assert key != report_key(("Sinus rhythm Normal ECG",))


def test_the_key_is_stable_across_versions():
    assert (
        report_key(("Sinus rhythm", "Normal ECG")) == report_key(("sinus rhythm", "normal ecg")) == "8d9bb306baf1d535"
    )


def test_joining():
    statements = ("Sinus rhythm", "Abnormal ECG")
    assert join_statements(statements) == "Sinus rhythm. Abnormal ECG."
    assert join_statements(statements, "merl") == "sinus rhythm. abnormal ecg."
    assert join_statements(()) == join_statements((), "merl") == ""
    with pytest.raises(ValueError, match="sentences, merl"):
        join_statements(statements, "prose")


def test_the_3862_real_machine_phrases_clean_to_words(real_data):
    phrases = (real_data / "mimic-iv-ecg-format" / "report_phrases_esi.txt").read_text().splitlines()
    cleaned = [clean_statements([phrase]) for phrase in phrases]
    lost = [
        phrase for phrase, result in zip(phrases, cleaned, strict=True) if not result and any(map(str.isalnum, phrase))
    ]
    assert not lost
    assert not [
        result for result in cleaned if result and ("***" in result[0] or "@" in result[0] or result[0][-1] in ".,;")
    ]
    assert len(phrases) == len(set(phrases)) == 3862 and all(cleaned)
    assert len({result[0].casefold() for result in cleaned}) == len({report_key(result) for result in cleaned}) == 3080
