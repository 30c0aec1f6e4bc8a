"""What counts as an answer, and what of it may be added to a report."""

from __future__ import annotations

import json

import pytest

from cardialign.cluster.completion.guard import CLASS_NAME, DIAGNOSIS, SAID, LeakGuard
from cardialign.cluster.completion.prompt import features_of, messages
from cardialign.cluster.completion.stub import RULES, features_for
from cardialign.data_shards.cohort.findings import FINDINGS


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ('["P waves absent", "Irregular RR intervals"]', ["P waves absent", "Irregular RR intervals"]),
        ('  ["Tall T."]\n', ["Tall T"]),
        ('```json\n["Tall T"]\n```', ["Tall T"]),
        ('<think>[maybe "x"]</think>\n["Tall T"]', ["Tall T"]),
        ('["Tall T", "tall t", " TALL  T. "]', ["Tall T"]),
        ("[]", []),
        ('["", "  ", "***"]', []),
        (json.dumps([f"Wave {k}" for k in range(40)]), [f"Wave {k}" for k in range(15)]),
        (json.dumps([" ".join("abcdefghijkl"), " ".join("abcdefghijklm")]), ["a b c d e f g h i j k l"]),
        ('["Tall\\u0007T", "Low P"]', ["Low P"]),
    ],
)
def test_a_list_is_read_cleaned_and_bounded(answer: str, wanted: list[str]) -> None:
    assert features_of(answer) == wanted


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "The ECG likely shows absent P waves.",
        'Here you are: ["P waves absent"]',
        '["P waves absent"] Hope this helps!',
        '["P waves absent"',
        '{"features": ["P waves absent"]}',
        '["P waves absent", 3]',
        '[["P waves absent"]]',
        '"P waves absent"',
        "null",
        "[" * 100_000,
    ],
)
def test_prose_and_other_json_is_no_answer(answer: str) -> None:
    assert features_of(answer) is None


def test_the_question_holds_the_report_and_the_form_of_the_answer() -> None:
    system, user = messages("Atrial fibrillation. Abnormal ECG.")
    assert user == {"role": "user", "content": "Report: Atrial fibrillation. Abnormal ECG."}
    assert system["role"] == "system" and "JSON list" in system["content"]


REPORT = ("Sinus rhythm", "Right bundle branch block", "Possible inferior infarct")


@pytest.mark.parametrize(
    ("feature", "why"),
    [
        ("RSR' pattern in V1", None),
        ("Q waves in II, III and aVF", None),
        ("sinus rhythm", SAID),
        ("Right bundle-branch block!", SAID),
        ("Findings of inferior myocardial infarction", DIAGNOSIS),
        ("Wide QRS due to conduction block", DIAGNOSIS),
        ("Signs of left ventricular hypertrophy", None),  # not a diagnosis of this report
        ("Inverted T waves in V1-V3", CLASS_NAME),
        ("inverted T-waves", CLASS_NAME),
        ("Inverted T wave", None),  # not the whole name
        ("Lae morphology of P", None),
    ],
)
def test_the_guard_drops_what_tells_a_test_its_answer(feature: str, why: str | None) -> None:
    assert LeakGuard(["Inverted T waves"]).why_dropped(feature, REPORT) == why


def test_stems_are_whole_beginnings() -> None:
    guard = LeakGuard([])
    assert guard.why_dropped("Pacemaker spikes", ("Ventricular paced rhythm",)) == DIAGNOSIS
    assert guard.why_dropped("Enlarged P waves", ("Left atrial enlargement",)) == DIAGNOSIS
    assert guard.why_dropped("RAE", ("RAE",)) == SAID
    assert guard.why_dropped("Raevsky sign", ("RAE",)) is None


def test_the_rules_know_every_finding_of_the_virtual_cohort_by_each_of_its_names_and_leak_none() -> None:
    """But for a normal ECG, of which they say nothing."""
    facts = {"rate": 130, "pr": 230, "qtc": 500, "axis": -50, "response": "rapid", "flutter_conduction": "2:1"}
    facts |= {"escape": "ventricular", "pacing": "Ventricular", "wpw_type": "A", "strain": " with strain"}
    facts |= {"t_region": "lateral", "T_region": "Lateral", "atrial_rate": 300}
    guard = LeakGuard([])
    for code, finding in FINDINGS.items():
        for statement in finding.statements:
            said = statement.format_map(facts)
            features = features_for(said)
            assert bool(features) == (code != "NORM"), said
            assert [f for f in features if guard.why_dropped(f, (said,)) == DIAGNOSIS] == [], said


def test_made_up_features_come_as_often_as_asked_and_the_same_for_the_same_report() -> None:
    reports = [f"Left bundle branch block {k}" for k in range(400)]
    own = next(features for pattern, features in RULES if "left bundle" in pattern)
    extra = [len(features_for(report, 0.3)) - len(own) for report in reports]
    assert 0.5 < sum(extra) / len(extra) < 0.7  # two chances of 0.3
    assert all(features_for(report, 0.3) == features_for(report, 0.3) for report in reports[:20])
    assert all(features_for(report) == list(own) for report in reports)
