"""From a planned visit to a recording: the person's heart, its findings, its beats, the leads, the noise, the
measurements and the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cardialign.data_shards.cohort import growth, rhythm
from cardialign.data_shards.cohort import morphology as shapes
from cardialign.data_shards.cohort.dipole import torso
from cardialign.data_shards.cohort.findings import FINDINGS
from cardialign.data_shards.cohort.for_age import CHANGES
from cardialign.data_shards.cohort.noise import Fault, digitise, draw_fault, electrode_noise
from cardialign.data_shards.cohort.norms import ADULT, limits
from cardialign.data_shards.cohort.patients import Patient, Visit
from cardialign.data_shards.cohort.reports import Report, write_report
from cardialign.data_shards.cohort.waveform_changes import Draft, wide_beat

UNKNOWN = 29999
"""What machine_measurements.csv holds where nothing could be measured, e.g. the P wave in atrial fibrillation."""


@dataclass(frozen=True)
class Heart:
    """A visit without noise: `leads` float32 (8, T) mV in the independent leads (`dipole.DOWER`), the draft and the
    beats that made it."""

    leads: np.ndarray
    draft: Draft
    beats: rhythm.Beats


@dataclass(frozen=True)
class Recording:
    """A visit as recorded: int16 counts (12, T) in STANDARD_LEADS order at `gain` counts per mV, with measurements in
    ms and degrees."""

    counts: np.ndarray
    gain: float
    sampling_rate: int
    measurements: dict[str, int]
    report: Report
    fault: Fault | None
    axis: float


def _stream(seed: int, *path: int) -> np.random.Generator:
    """The random stream of one thing (person, visit, finding): a function of the seed and its place in the cohort
    alone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *path])))


def draft_visit(patient: Patient, visit: Visit, seed: int, seconds: float) -> Draft:
    """The patient's heart on that day, with every finding of the visit.

    Anatomy and chronic findings are drawn alike for each visit.
    """
    body = _stream(seed, 1, patient.index)
    lead_field = torso(body)
    child = patient.by_age and visit.age < ADULT
    if child:
        rate = growth.usual_rate(visit.age, float(body.standard_normal()))
        beat = growth.normal_beat(visit.age, patient.male, lead_field, body)
        low, _, high = limits("rate", visit.age)
    else:
        beat = shapes.normal_beat(visit.age, patient.male, lead_field, body)
        rate = shapes.usual_rate(visit.age, body)
        low, high = shapes.normal_rate(visit.age)
    today = _stream(seed, 2, patient.index, visit.number)
    plan = rhythm.RhythmPlan(
        rate=float(np.clip(rate * np.exp(0.07 * today.standard_normal()), low + 2, high - 3)),
        sinus_arrhythmia=float(today.uniform(0.005, 0.03 if visit.age > 40 else 0.07)),
        breathing_hz=float(today.uniform(0.2, 0.33) if visit.age > 5 else today.uniform(0.4, 0.7)),
    )
    beat.qrs[:, 2:] *= 1 + 0.03 * today.standard_normal()
    draft = Draft(visit.age, lead_field, beat, plan, seconds)
    table = list(FINDINGS)
    for code in sorted(visit.findings, key=lambda c: (FINDINGS[c].stage, table.index(c))):
        occasion = 0 if code in patient.chronic else visit.number
        change = CHANGES.get(code, FINDINGS[code].change) if child else FINDINGS[code].change
        change(draft, _stream(seed, 3, patient.index, table.index(code), occasion))
    # P must fit before the QRS, and no cycle may be shorter than its QT.
    draft.beat.p_ms = min(draft.beat.p_ms, draft.beat.pr_ms - 12)
    return draft


def beat_heart(draft: Draft, sampling_rate: float, rng: np.random.Generator) -> Heart:
    """The noise-free leads of a draft."""
    samples = round(draft.seconds * sampling_rate)
    plan, beat = draft.rhythm, draft.beat
    beats = rhythm.generate(plan, beat.pr_ms / 1000, draft.seconds, rng)
    onsets, premature, rr = np.array(beats.qrs), np.array(beats.ventricular, dtype=bool), beats.rr()
    settled = 0.65 * float(np.median(rr)) + 0.35 * rr  # QT follows the rate with a lag
    strength = (
        1
        + 0.05 * np.sin(2 * np.pi * plan.breathing_hz * onsets + rng.uniform(0, 6.3))
        + 0.012 * rng.standard_normal(len(onsets))
    )
    vector = shapes.beat_loops(
        beat, onsets[~premature], settled[~premature], strength[~premature], samples, sampling_rate
    )
    if premature.any():
        ectopic = wide_beat(beat, "right" if rng.random() < 0.55 else "left", rng)
        vector += shapes.beat_loops(
            ectopic, onsets[premature], settled[premature], strength[premature], samples, sampling_rate
        )
    vector += _atria(draft, beats, samples, sampling_rate, rng)
    if beat.spike is not None:
        at = np.rint((onsets - 0.004) * sampling_rate).astype(int)
        vector[:, at[(at >= 0) & (at < samples)]] += beat.spike[:, None].astype(np.float32)
    gain = shapes.lead_gain(draft.lead_field, beat).astype(np.float32)
    return Heart(gain @ vector, draft, beats)


def _atria(
    draft: Draft, beats: rhythm.Beats, samples: int, sampling_rate: float, rng: np.random.Generator
) -> np.ndarray:
    plan, beat = draft.rhythm, draft.beat
    times = np.arange(samples) / sampling_rate
    if plan.origin == "afib":
        return rhythm.fibrillatory_waves(plan, times, rng)
    if plan.origin == "flutter":
        return rhythm.flutter_waves(plan, times, beats.qrs[0] - 0.06)
    onsets, pr, early = np.array(beats.p), np.array(beats.pr), np.array(beats.p_early, dtype=bool)
    out = shapes.atrial_loops(beat.p, beat.p_ms, onsets[~early], pr[~early], beat.pr_segment, samples, sampling_rate)
    if early.any():  # another focus: another direction
        p = beat.p * np.array([0.8, -0.35, 1.0])
        out += shapes.atrial_loops(
            p, 0.9 * beat.p_ms, onsets[early], pr[early], beat.pr_segment, samples, sampling_rate
        )
    return out


def record_visit(
    patient: Patient, visit: Visit, seed: int, seconds: float, sampling_rate: int, gain: float
) -> Recording:
    """One recording of the cohort, from its plan and the seed alone."""
    draft = draft_visit(patient, visit, seed, seconds)
    rng = _stream(seed, 4, patient.index, visit.number)
    heart = beat_heart(draft, sampling_rate, rng)
    mains = 50.0 if patient.index % 3 == 0 else 60.0
    fault = draw_fault(heart.leads.shape[1], rng)
    leads = heart.leads + electrode_noise(heart.leads.shape[1], sampling_rate, mains, rng)
    measured = measure(heart, rng)
    report = write_report(visit.findings, report_facts(heart, visit, measured, fault), rng)
    return Recording(digitise(leads, gain, fault), gain, sampling_rate, measured, report, fault, measured["qrs_axis"])


def measure(heart: Heart, rng: np.random.Generator) -> dict[str, int]:
    """What the machine measures on the median beat: times in ms from the start of its window, axes in degrees, UNKNOWN
    where there is nothing."""
    draft, beats = heart.draft, heart.beats
    beat, gaps = draft.beat, np.diff([q for q in beats.qrs if 0 <= q <= draft.seconds])
    rr = float(np.median(gaps)) if len(gaps) else 60 / draft.rhythm.rate
    with_p = draft.rhythm.origin in ("sinus", "av-paced")
    near = rng.integers(-2, 3, 7)
    qrs_on = 40 + beat.pr_ms if with_p else 200.0
    t_vector_axis = shapes.vector_axis(beat.t, draft.lead_field)
    return {
        "rr_interval": round(1000 * rr),
        "p_onset": 40 if with_p else UNKNOWN,
        "p_end": round(40 + beat.p_ms + near[0]) if with_p else UNKNOWN,
        "qrs_onset": round(qrs_on + near[1]),
        "qrs_end": round(qrs_on + beat.qrs_ms + near[2]),
        "t_end": round(qrs_on + float(beat.qt_ms(np.array(rr))) + near[3]),
        "p_axis": round(shapes.vector_axis(beat.p.sum(axis=0), draft.lead_field) + near[4]) if with_p else UNKNOWN,
        "qrs_axis": round(shapes.qrs_axis(beat, draft.lead_field) + near[5]),
        "t_axis": round(t_vector_axis + near[6]),
    }


def report_facts(heart: Heart, visit: Visit, measured: dict[str, int], fault: Fault | None) -> dict[str, Any]:
    """Everything a phrase may name."""
    rate = round(60_000 / measured["rr_interval"])
    qt = measured["t_end"] - measured["qrs_onset"]
    facts: dict[str, Any] = {
        "t_region": "", "wpw_type": "A", "flutter_conduction": "variable", **heart.draft.facts,
        "age": visit.age, "rate": rate, "pr": measured["qrs_onset"] - 40, "axis": measured["qrs_axis"],
        "qtc": round(qt / np.sqrt(measured["rr_interval"] / 1000)),
        "atrial_rate": round(heart.draft.rhythm.atrial_rate),
        "response": "rapid" if rate > 100 else "slow" if rate < 60 else "controlled",
        "fault_lead": fault.leads[0] if fault is not None and fault.kind != "clipped" else "",
    }  # fmt: skip
    facts["T_region"] = facts["t_region"].capitalize()
    facts["strain"] = " with secondary repolarization abnormality" if facts.get("lvh_strain") else ""
    facts["escape"] = "ventricular" if facts.get("wide_escape") else "junctional"
    facts["pacing"] = "A-V sequential" if facts.get("dual_chamber") else "Ventricular"
    return facts
