"""Reports as machines print them: rhythm first, diagnoses with qualifiers, now and then the features behind them, a
summary, gaps and omissions.

Only findings that the record holds are ever mentioned; some are left out, as in real files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cardialign.data_shards.cohort.findings import FINDINGS, NORMAL, Finding

SLOTS = 18
"""report_0 to report_17 of MIMIC-IV-ECG."""
OMISSION = 0.065
"""Chance that a finding goes unmentioned."""

_SINUS = ("Sinus rhythm", "Sinus rhythm", "Sinus rhythm", "Regular sinus rhythm", "Sinus rhythm, rate {rate}")
_NORMAL_SINUS = (*_SINUS, "Normal sinus rhythm", "Normal sinus rhythm")
_QUALIFIERS = ("Possible", "Possible", "Probable", "Cannot rule out", "Consider", "Suggestive of")
_SEVERITY = ("Normal ECG", "Otherwise normal ECG", "Borderline ECG", "Abnormal ECG")
_ACRONYMS = (
    "LVH",
    "RVH",
    "LBBB",
    "RBBB",
    "LAFB",
    "LAE",
    "RAE",
    "WPW",
    "ST ",
    "IV ",
    "T ",
    "QT",
    "PR ",
    "A-V",
    "Wolff",
    "Wenckebach",
    "Mobitz",
)


@dataclass(frozen=True)
class Report:
    """`slots`: 18 strings, "" for a gap."""

    slots: tuple[str, ...]

    @property
    def statements(self) -> tuple[str, ...]:
        return tuple(s for s in self.slots if s)


def omitted(findings: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    """The findings (codes) of a record that its report leaves out; that it is normal is always said."""
    return tuple(code for code in findings if code != NORMAL and rng.random() < OMISSION)


def write_report(findings: tuple[str, ...], facts: Mapping[str, Any], rng: np.random.Generator) -> Report:
    """The report of one record with `findings` (codes in table order).

    `facts` fills the phrases: rate, pr, qtc, axis, response, leads ...
    """
    present = [FINDINGS[c] for c in findings]
    left_out = omitted(findings, rng)
    said = [f for f in present if f.code not in left_out]
    lines, waiting = _rhythm(present, said, facts, rng)
    lines += _diagnoses(waiting, facts, rng)
    if facts.get("fault_lead") and rng.random() < 0.4:
        lines.insert(
            0,
            _pick(
                ("Partial missing lead(s): {fault_lead}", "Lead(s) unsuitable for analysis: {fault_lead}"), rng
            ).format_map(facts),
        )
    if facts.get("age", 40) < 16 and rng.random() < 0.3:
        lines.insert(0, "--- Pediatric criteria used ---")
    summary = _summary(present, facts, rng)
    return Report(_lay_out(lines, summary, rng))


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(0, len(options)))]


def _rhythm(
    present: list[Finding], said: list[Finding], facts: Mapping[str, Any], rng: np.random.Generator
) -> tuple[list[str], list[Finding]]:
    """The opening statement, and the findings it leaves to be said.

    Where the rhythm itself is omitted, no other rhythm is claimed.
    """
    rest = [f for f in said if f.code != NORMAL and not f.leads_report]
    leading = next((f for f in said if f.leads_report), None)
    unnamed = next((f for f in present if f.leads_report and f not in said), None)
    if leading is not None:
        opening = _phrase(leading, facts, rng)
    elif unnamed is not None and not unnamed.name.startswith("sinus"):
        opening = "Undetermined rhythm" if rng.random() < 0.5 else ""
    else:
        opening = _pick(_NORMAL_SINUS if len(present) == 1 and present[0].code == NORMAL else _SINUS, rng).format_map(
            facts
        )
    if opening:
        for one in [f for f in rest if f.suffix]:
            if rng.random() < 0.6:
                opening += " " + _pick(one.suffix, rng)
                rest.remove(one)
                break
    lines = [opening] if opening else []
    if leading is not None and leading.features and rng.random() < 0.18:
        lines.append(_pick(leading.features, rng).format_map(facts))
    return lines, rest


def _phrase(finding: Finding, facts: Mapping[str, Any], rng: np.random.Generator) -> str:
    text = _pick(finding.statements, rng).format_map(facts)
    if finding.leads_report and not finding.plain and rng.random() < 0.1:
        return f"Probable {text[0].lower()}{text[1:]}"
    return text


def _diagnoses(findings: list[Finding], facts: Mapping[str, Any], rng: np.random.Generator) -> list[str]:
    lines: list[str] = []
    for one in findings:
        text = _phrase(one, facts, rng)
        if (
            not one.plain
            and rng.random() < 0.3
            and "possibl" not in text
            and "consider" not in text
            and "may be" not in text
        ):
            keep = text.startswith(_ACRONYMS) or text.split()[0].isupper()
            text = f"{_pick(_QUALIFIERS, rng)} {text if keep else text[0].lower() + text[1:]}"
        chance = float(rng.random())
        feature = _pick(one.features, rng).format_map(facts) if one.features else ""
        if feature and chance < 0.13:
            lines += [feature, text]
        elif feature and chance < 0.24:
            lines += [text, feature]
        elif chance > 0.95:
            lines += [text, _phrase(one, facts, rng)]  # machines repeat themselves in other words
        else:
            lines.append(text)
    return list(dict.fromkeys(lines))


def _summary(present: list[Finding], facts: Mapping[str, Any], rng: np.random.Generator) -> str:
    worst = max(_SEVERITY.index(f.summary) for f in present)
    if worst == 0:
        return _phrase(present[0], facts, rng) if rng.random() < 0.94 else ""
    if _SEVERITY[worst] == "Otherwise normal ECG" and rng.random() < 0.3:
        return "Borderline ECG"
    return _SEVERITY[worst] if rng.random() < 0.85 else ""


def _lay_out(lines: list[str], summary: str, rng: np.random.Generator) -> tuple[str, ...]:
    """Statements into 18 slots: now and then a blank one in between, mostly one before the summary; some carts end
    lines in dots, some shout."""
    slots: list[str] = []
    for line in lines:
        if slots and rng.random() < 0.06:
            slots.append("")
        slots.append(line)
    if summary:
        if slots and rng.random() < 0.55:
            slots.append("")
        slots.append(summary)
    style = float(rng.random())
    if style < 0.06:
        slots = [s.upper() for s in slots]
    elif style < 0.20:
        slots = [s + "." if s and s[-1].isalnum() else s for s in slots]
    if not any(slots):
        slots = ["Abnormal ECG"]
    slots = slots[:SLOTS]
    return tuple(slots + [""] * (SLOTS - len(slots)))
