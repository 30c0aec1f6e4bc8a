"""Reports: only what is there, in many wordings, with gaps and omissions."""

from __future__ import annotations

import copy
import re
from typing import NamedTuple

import numpy as np
import pytest

from cardialign.data_shards.cohort.findings import FINDINGS
from cardialign.data_shards.cohort.patients import plan_cohort
from cardialign.data_shards.cohort.reports import Report, omitted, write_report
from cardialign.data_shards.cohort.synthesis import beat_heart, draft_visit, measure, report_facts
from tests.support.cohort_measures import measured, person

# What a reader would take as a claim of the finding.
CLAIMS = {
    "NORM": r"\bnormal ecg|normal limits|no abnormality",
    "SBRAD": "bradycardia",
    "STACH": "tachycardia|rapid sinus",
    "AFIB": "fibrillat",
    "AFLT": "flutter",
    "PAC": r"\bpac\b|atrial premature|premature atrial|supraventricular extra",
    "PVC": r"\bpvcs?\b|ventricular premature|premature ventricular|(?<!supra)ventricular extrasys",
    "1AVB": "first degree|1st degree|prolonged pr",
    "WENCK": "wenckebach|mobitz|type i\\b|dropped",
    "3AVB": "complete a-v|third degree|complete heart",
    "PACE": "pac(ed|ing|emaker)",
    "LBBB": "left bundle|lbbb",
    "RBBB": "right bundle|rbbb|rsr'",
    "LAFB": "left anterior|lafb|left axis",
    "WPW": "excitation|wolff|wpw|delta",
    "LVH": "left ventricular hyp|lvh",
    "RVH": "right ventricular hyp|rvh|right axis",
    "LAE": "left atrial|\\blae\\b",
    "RAE": "right atrial|\\brae\\b",
    "OIMI": "old inferior|inferior infarct, age|inferior infarct - age|infarction, old|inferior q",
    "OAMI": "old anterior|anteroseptal|anterior infarct - age|and anterior infarct, old|poor r",
    "ASTE": "anterior st elev|anterior infarct, possibly|acute anterior|anterior injury",
    "ISTE": "inferior st elev|inferior infarct, possibly|acute inferior|inferior injury",
    "LSTE": "lateral st elev|lateral infarct, possibly|acute lateral|lateral injury",
    "PERI": "pericarditis|diffuse st|widespread st",
    "STD": "st depression, consider|lateral st depression|inferior st depression|st depression - ",
    "TINV": "t wave inv|inverted t",
    "LQT": "qt",
    "LVOLT": "low (qrs|volt|limb)",
}


class Written(NamedTuple):
    """A report, with the findings (codes) of its record and those of them that it leaves out."""

    findings: tuple[str, ...]
    left_out: tuple[str, ...]
    report: Report


@pytest.fixture(scope="module")
def reports() -> list[Written]:
    out = []
    for layout, seed in (("mimic-iv-ecg", 1), ("paediatric", 2)):
        for patient in plan_cohort(180, 420, layout, seed, "balanced", tuple(FINDINGS)):
            for visit in patient.visits:
                rng = np.random.default_rng(visit.number)
                draft = draft_visit(patient, visit, seed, 10.0)
                heart = beat_heart(draft, 100, rng)
                facts = report_facts(heart, visit, measure(heart, rng), None)
                left_out = omitted(visit.findings, copy.deepcopy(rng))  # what the next line draws first
                out.append(Written(visit.findings, left_out, write_report(visit.findings, facts, rng)))
    return out


def test_no_absent_finding_is_reported(reports: list[Written]):
    for findings, left_out, report in reports:
        text = " | ".join(report.statements).lower().replace("otherwise normal ecg", "").replace("abnormal ecg", "")
        for code, claim in CLAIMS.items():
            assert code in findings or not re.search(claim, text), f"{code} claimed for {findings}: {text}"
        assert set(left_out) <= set(findings)


def test_mentioned_findings_can_be_read_and_omitted_ones_cannot(reports: list[Written]):
    for findings, left_out, report in reports:
        text = " | ".join(report.statements).lower().replace("otherwise normal ecg", "").replace("abnormal ecg", "")
        for code in findings:
            if code in left_out:
                assert not re.search(CLAIMS[code], text) or code in ("OIMI", "OAMI"), (code, text)
            elif code != "NORM":
                assert re.search(CLAIMS[code], text), (code, text)


def test_omissions_gaps_and_qualifiers_are_as_frequent_as_promised(reports: list[Written]):
    findings = sum(len([code for code in each.findings if code != "NORM"]) for each in reports)
    left_out = sum(len(each.left_out) for each in reports)
    assert 0.045 < left_out / findings < 0.085
    gaps = np.mean(["" in r.slots[: len(r.statements)] for *_, r in reports])
    assert 0.3 < gaps < 0.75
    assert all(len(r.slots) == 18 and r.statements for *_, r in reports)
    joined = [" ".join(r.statements) for *_, r in reports]
    assert (
        0.05
        < np.mean([bool(re.search("(?i)possible|probable|cannot rule out|consider|suggestive", t)) for t in joined])
        < 0.5
    )
    assert 0.08 < np.mean([t.endswith(".") for t in joined]) < 0.25
    assert all("{" not in t for t in joined)


def test_each_finding_has_many_wordings():
    for code in FINDINGS:
        m = measured(code, 1)
        facts = report_facts(m.heart, person(60, 1, (code,))[1], measure(m.heart, np.random.default_rng(0)), None)
        texts = {" ".join(write_report((code,), facts, np.random.default_rng(i)).statements) for i in range(60)}
        assert len(texts) >= 12, (code, texts)
