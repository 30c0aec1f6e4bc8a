"""What each finding does to a heart: functions that change a `Draft` so that the finding meets its textbook criterion.

Criteria: Surawicz et al. 2009 (conduction), Hancock et al. 2009 (hypertrophy), Wagner et al. 2009 (ischaemia),
Rautaharju et al. 2009 (ST, T, QT), AHA/ACCF/HRS recommendations, Circulation 119:e235-e261. Every change draws its
severity from the generator it is given, from slight to marked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cardialign.data_shards.cohort import morphology as shapes
from cardialign.data_shards.cohort.morphology import Morphology
from cardialign.data_shards.cohort.rhythm import RhythmPlan


@dataclass
class Draft:
    """A record in the making: the person's beat and rhythm, changed by one finding after the other.

    `facts` is what reports may mention.
    """

    age: float
    lead_field: np.ndarray
    beat: Morphology
    rhythm: RhythmPlan
    seconds: float = 10.0
    facts: dict[str, Any] = field(default_factory=dict)


def _draw(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _waves(rng: np.random.Generator, rows: list[list[float]], spread: float = 0.08) -> np.ndarray:
    """QRS waves with a person's own spread on the vectors."""
    out = np.array(rows)
    out[:, 2:] *= 1 + spread * rng.standard_normal((len(rows), 3))
    return out


# Rate and rhythm


def sinus_bradycardia(draft: Draft, rng: np.random.Generator) -> None:
    low = shapes.normal_rate(draft.age)[0]
    draft.rhythm.rate = low * _draw(rng, 0.68, 0.93)


def sinus_tachycardia(draft: Draft, rng: np.random.Generator) -> None:
    high = shapes.normal_rate(draft.age)[1]
    draft.rhythm.rate = min(high * _draw(rng, 1.06, 1.45), 205)
    draft.rhythm.sinus_arrhythmia = 0.01
    draft.beat.pr_ms *= 0.92


def atrial_fibrillation(draft: Draft, rng: np.random.Generator) -> None:
    draft.rhythm.origin = "afib"
    draft.rhythm.rate = _draw(rng, 55, 145)
    draft.rhythm.atrial_size = _draw(rng, 0.025, 0.075)


def atrial_flutter(draft: Draft, rng: np.random.Generator) -> None:
    rhythm = draft.rhythm
    rhythm.origin, rhythm.atrial_rate = "flutter", _draw(rng, 250, 300)
    rhythm.conduction = ((2,), (4,), (3,), (4, 2), (4, 3, 4))[int(rng.choice(5, p=(0.32, 0.34, 0.12, 0.12, 0.10)))]
    rhythm.rate = rhythm.atrial_rate / float(np.mean(rhythm.conduction))
    rhythm.atrial_size = _draw(rng, 0.11, 0.22)
    draft.facts["flutter_conduction"] = f"{rhythm.conduction[0]}:1" if len(rhythm.conduction) == 1 else "variable"


def premature_atrial(draft: Draft, rng: np.random.Generator) -> None:
    draft.rhythm.premature_atrial = int(rng.integers(1, 4))
    draft.rhythm.coupling = _draw(rng, 0.55, 0.66)
    draft.rhythm.rate = min(draft.rhythm.rate, 105)


def premature_ventricular(draft: Draft, rng: np.random.Generator) -> None:
    draft.rhythm.premature_ventricular = int(rng.integers(1, 5))
    draft.rhythm.coupling = _draw(rng, 0.56, 0.68)
    draft.rhythm.rate = min(draft.rhythm.rate, 105)
    draft.facts["pvc_many"] = draft.rhythm.premature_ventricular > 2


def first_degree_block(draft: Draft, rng: np.random.Generator) -> None:
    upper = float(np.interp(draft.age, (0, 1, 6, 12, 18), (140, 150, 165, 180, 200)))
    draft.beat.pr_ms = max(upper * _draw(rng, 1.09, 1.5), upper + 15)
    draft.rhythm.rate = min(draft.rhythm.rate, 95 if draft.age > 12 else 130)


def wenckebach(draft: Draft, rng: np.random.Generator) -> None:
    draft.rhythm.wenckebach = int(rng.integers(3, 6))
    draft.beat.pr_ms = _draw(rng, 160, 215) * (1 if draft.age > 6 else 0.8)
    draft.rhythm.rate = float(np.clip(draft.rhythm.rate, 68, 98 if draft.age > 6 else 120))
    draft.rhythm.sinus_arrhythmia = 0.01


def complete_block(draft: Draft, rng: np.random.Generator) -> None:
    draft.rhythm.origin = "complete-block"
    draft.rhythm.atrial_rate = float(np.clip(draft.rhythm.rate * 1.15, 70, 140))
    draft.rhythm.rate = _draw(rng, 33, 48) if draft.age > 6 else _draw(rng, 48, 65)
    if rng.random() < 0.5:
        ventricular_escape(draft, rng)


def ventricular_escape(draft: Draft, rng: np.random.Generator) -> None:
    draft.beat = wide_beat(draft.beat, "right" if rng.random() < 0.5 else "left", rng)
    draft.facts["wide_escape"] = True


# Conduction


def left_bundle_branch_block(draft: Draft, rng: np.random.Generator) -> None:
    """QRS >= 130 ms, no septal q, broad notched R in I and V6, deep S in V1, ST and T against the QRS."""
    beat, scale = draft.beat, _draw(rng, 0.85, 1.15)
    beat.qrs = _waves(
        rng,
        [
            [0.17, 0.075, 0.22, 0.12, -0.02],
            [0.36, 0.085, 0.80, 0.32, 0.62],
            [0.53, 0.075, 0.34, 0.20, 0.62],
            [0.69, 0.080, 0.80, 0.18, 0.70],
            [0.86, 0.060, 0.12, 0.02, 0.10],
        ],
        0.06,
    )
    beat.qrs[:, 2:] *= scale
    beat.qrs_ms = _draw(rng, 136, 168)
    shapes.turn_to_axis(beat, draft.lead_field, _draw(rng, -35, 45))
    beat.t = np.array([-0.42, -0.08, -0.42]) * scale * _draw(rng, 0.8, 1.2)
    beat.st = np.array([-0.10, -0.02, -0.14]) * scale * _draw(rng, 0.7, 1.2)
    beat.qtc_ms += 28


def right_bundle_branch_block(draft: Draft, rng: np.random.Generator) -> None:
    """QRS >= 120 ms, rsR' in V1, broad S in I and V6, T inverted in V1."""
    beat, new = draft.beat, _draw(rng, 124, 156)
    if draft.age < 10:
        new *= 0.8
    old = beat.qrs.copy()
    old[:, :2] *= min(beat.qrs_ms, 92) / new
    terminal = np.array([[0.66, 0.085, -0.34, 0.02, -0.46], [0.82, 0.075, -0.42, -0.02, -0.40]])
    terminal[:, 2:] *= _draw(rng, 0.8, 1.25)
    beat.qrs, beat.qrs_ms = np.vstack([old[:3] * np.array([1, 1, 0.9, 0.9, 0.9]), terminal]), new
    beat.t[2] = abs(beat.t[2]) + _draw(rng, 0.08, 0.18)
    beat.qtc_ms += 14


def left_anterior_fascicular_block(draft: Draft, rng: np.random.Generator) -> None:
    """Axis -45 to -75 degrees, qR in aVL, rS in II, III and aVF, QRS under 120 ms."""
    beat = draft.beat
    late = beat.qrs[:, 0] > 0.3
    early = beat.qrs[~late]
    early[:, 2:4] = np.array([-0.10, 0.28]) * _draw(rng, 0.8, 1.2)
    beat.qrs[~late] = early
    beat.qrs[late, 3] = -np.abs(beat.qrs[late, 3]) - 0.05
    beat.qrs_ms = min(beat.qrs_ms + _draw(rng, 4, 14), 112)
    shapes.turn_to_axis(beat, draft.lead_field, _draw(rng, -68, -50))


def preexcitation(draft: Draft, rng: np.random.Generator) -> None:
    """PR under 120 ms, slurred delta wave, QRS widened at its start, ST and T against the delta."""
    beat = draft.beat
    young = draft.age < 10
    beat.pr_ms = _draw(rng, 70, 86) if young else _draw(rng, 82, 108)
    beat.p_ms = min(beat.p_ms, beat.pr_ms - 6)
    lead_time = _draw(rng, 36, 52) * (0.7 if young else 1)
    new = beat.qrs_ms + lead_time - 4
    beat.qrs[:, 0] = (beat.qrs[:, 0] * beat.qrs_ms + lead_time - 4) / new
    beat.qrs[:, 1] *= beat.qrs_ms / new
    septal = beat.qrs[:, 0] < 0.45
    beat.qrs[septal, 2:] = 0.0  # the septum is no longer the first to be excited
    left_sided = rng.random() < 0.5
    direction = np.array([0.24, 0.22, -0.34]) if left_sided else np.array([0.42, -0.14, 0.12])
    delta = np.array([[0.25, 0.095], [0.44, 0.085]])
    size = np.array([[0.62], [0.95]]) * _draw(rng, 0.85, 1.25)
    beat.qrs = np.vstack([np.hstack([delta, size * direction]), beat.qrs])
    beat.qrs_ms = new
    beat.t = beat.t - direction * _draw(rng, 0.35, 0.9)
    beat.st = beat.st - 0.10 * direction
    beat.qtc_ms += 10
    draft.facts["wpw_type"] = "A" if left_sided else "B"


def ventricular_pacing(draft: Draft, rng: np.random.Generator) -> None:
    """A spike before every QRS, QRS broad as from the right ventricular apex; with or without a P before it."""
    draft.rhythm.rate = float(rng.choice([60, 60, 65, 70, 75, 80])) * float(
        np.interp(draft.age, (0, 1, 6, 16), (2.0, 1.7, 1.3, 1.0))
    )
    draft.rhythm.origin = "av-paced" if rng.random() < 0.5 else "paced"
    draft.rhythm.sinus_arrhythmia = 0.0
    draft.beat = wide_beat(draft.beat, "apex", rng)
    draft.beat.pr_ms = _draw(rng, 140, 190) * float(np.interp(draft.age, (0, 16), (0.65, 1.0)))
    draft.beat.spike = np.array([0.35, 0.8, -0.5]) * _draw(rng, 0.5, 2.0)
    draft.facts["dual_chamber"] = draft.rhythm.origin == "av-paced"


def wide_beat(beat: Morphology, focus: str, rng: np.random.Generator) -> Morphology:
    """A beat from the ventricles: `focus` "right" (outflow tract), "left" or "apex" (of the right ventricle); broad,
    with ST and T against it."""
    vectors = {
        "right": [[0.1, 0.28, 0.10], [0.42, 0.90, 0.72], [0.28, 0.66, 0.70], [0.05, 0.12, 0.22]],
        "left": [[-0.15, -0.1, -0.35], [-0.70, -0.45, -0.95], [-0.55, -0.55, -0.65], [-0.30, -0.2, -0.10]],
        "apex": [[0.26, -0.12, 0.08], [0.46, -0.64, 0.62], [0.22, -0.60, 0.56], [0.05, -0.20, 0.16]],
    }[focus]
    times = [[0.18, 0.09], [0.40, 0.105], [0.61, 0.10], [0.82, 0.075]]
    waves = _waves(rng, [t + v for t, v in zip(times, vectors, strict=True)], 0.12)
    waves[:, 2:] *= _draw(rng, 0.85, 1.2)
    main = waves[1, 2:] + waves[2, 2:]
    out = beat.copy()
    out.qrs, out.qrs_ms = waves, _draw(rng, 142, 172) * (0.75 if beat.qrs_ms < 75 else 1.0)
    out.t = -main * _draw(rng, 0.24, 0.34)
    out.st = -main * _draw(rng, 0.05, 0.09)
    out.qtc_ms += 45
    return out


# Chambers


def left_ventricular_hypertrophy(draft: Draft, rng: np.random.Generator) -> None:
    """Sokolow-Lyon over 3.5 mV (over 4.6 in children); strain (ST down, T inverted laterally) in about half."""
    beat = draft.beat
    goal = _draw(rng, 3.8, 4.9) if draft.age >= 16 else _draw(rng, 4.9, 5.8)
    beat.qrs[:, 4] += 0.10 * (beat.qrs[:, 0] > 0.35)
    for _ in range(5):
        now = shapes.sokolow_mv(shapes.qrs_leads(beat, draft.lead_field))
        beat.qrs[:, 2] *= goal / now
        beat.qrs[:, 4] *= np.sqrt(goal / now)
        beat.qrs[:, 3] *= (goal / now) ** 0.25
    beat.qrs_ms = min(beat.qrs_ms + _draw(rng, 4, 12), max(112, beat.qrs_ms))
    if rng.random() < 0.5:
        draft.facts["lvh_strain"] = True
        beat.t = np.array([-0.26, -0.06, -0.22]) * _draw(rng, 0.9, 1.3)
        beat.st = np.array([-0.10, -0.03, -0.08]) * _draw(rng, 0.8, 1.3)


def right_ventricular_hypertrophy(draft: Draft, rng: np.random.Generator) -> None:
    """Right axis (> 100 degrees), dominant R in V1, deep S in V5-V6, T inverted in V1-V3."""
    beat, scale = draft.beat, _draw(rng, 0.9, 1.35)
    beat.qrs = _waves(
        rng,
        [
            [0.20, 0.075, 0.04, 0.02, -0.22],
            [0.44, 0.100, -0.12, 0.62, -0.82],
            [0.62, 0.100, -0.55, 0.50, -0.42],
            [0.82, 0.075, -0.42, -0.05, 0.10],
        ],
    )
    beat.qrs[:, 2:] *= scale
    shapes.turn_to_axis(beat, draft.lead_field, _draw(rng, 105, 140))
    beat.t = np.array([0.26, 0.16, 0.26]) * _draw(rng, 0.8, 1.2)
    beat.st = beat.st + np.array([0.0, 0.0, 0.04])


def left_atrial_enlargement(draft: Draft, rng: np.random.Generator) -> None:
    """P over 120 ms and notched, its second half broad and negative in V1."""
    beat = draft.beat
    beat.p_ms = _draw(rng, 126, 146) * (0.8 if draft.age < 10 else 1)
    beat.p[1] = np.array([0.13, 0.09, 0.17]) * _draw(rng, 0.9, 1.35)
    beat.pr_ms = max(beat.pr_ms, beat.p_ms + 28)
    draft.rhythm.rate = min(draft.rhythm.rate, 100 if draft.age > 10 else 140)


def right_atrial_enlargement(draft: Draft, rng: np.random.Generator) -> None:
    """P in II over 0.25 mV, peaked."""
    draft.beat.p[0] = np.array([0.03, 0.26, -0.11]) * _draw(rng, 0.95, 1.4)
    draft.beat.p[1] = np.array([0.06, 0.10, 0.03])


# Infarction, ischaemia, repolarisation


def _raise_st(draft: Draft, direction: np.ndarray, size: float, t_share: float) -> None:
    draft.beat.st = draft.beat.st * 0.3 + direction * size
    draft.beat.t = draft.beat.t + direction * size * t_share
    draft.beat.t_width *= 1.22  # the raised segment runs into the T wave without a step


def anterior_elevation(draft: Draft, rng: np.random.Generator) -> None:
    """ST up in V1-V4, most in V2-V3 (0.2-0.5 mV), slightly down inferiorly."""
    _raise_st(draft, np.array([0.22, -0.12, -1.0]), _draw(rng, 0.17, 0.36), _draw(rng, 0.4, 1.1))


def inferior_elevation(draft: Draft, rng: np.random.Generator) -> None:
    """ST up in II, III and aVF (III most), down in aVL and I, often also in V2."""
    _raise_st(draft, np.array([-0.16, 1.0, _draw(rng, 0.05, 0.32)]), _draw(rng, 0.15, 0.32), _draw(rng, 0.4, 1.0))


def lateral_elevation(draft: Draft, rng: np.random.Generator) -> None:
    """ST up in I, aVL, V5 and V6, down in III and aVF."""
    _raise_st(draft, np.array([1.0, -0.48, 0.22]), _draw(rng, 0.16, 0.30), _draw(rng, 0.4, 1.0))


def pericarditis(draft: Draft, rng: np.random.Generator) -> None:
    """ST up diffusely without mirror images but in aVR, PR segment down."""
    size = _draw(rng, 0.20, 0.32)
    draft.beat.st = np.array([0.86, 0.60, -0.28]) * size
    draft.beat.t = draft.beat.t * 0.8
    draft.beat.pr_segment = np.array([-0.55, -0.75, 0.30]) * _draw(rng, 0.075, 0.13)


def st_depression(draft: Draft, rng: np.random.Generator) -> None:
    """ST down at least 0.1 mV in I, II and V4-V6, up in aVR."""
    size = _draw(rng, 0.16, 0.32)
    draft.beat.st = np.array([-0.68, -0.52, 0.16]) * size
    draft.beat.t = draft.beat.t * _draw(rng, 0.35, 0.9)


def t_inversion(draft: Draft, rng: np.random.Generator) -> None:
    """T negative where it should be positive: anterior, lateral or inferior leads.

    In children V1-V3 may be negative anyway, so V5-V6 are.
    """
    regions = ("anterior", "lateral", "inferior") if draft.age >= 16 else ("lateral", "inferior")
    region = regions[int(rng.integers(0, len(regions)))]
    vector = {"anterior": (-0.10, 0.08, 0.36), "lateral": (-0.34, 0.06, 0.05), "inferior": (0.16, -0.36, -0.06)}[region]
    draft.beat.t = np.array(vector) * _draw(rng, 0.8, 1.4)
    draft.beat.st = draft.beat.st * 0.3
    draft.facts["t_region"] = region


def old_inferior_infarct(draft: Draft, rng: np.random.Generator) -> None:
    """Q of at least 40 ms and a quarter of R in III and aVF, also in II; T often inverted there."""
    beat = draft.beat
    late = beat.qrs[:, 0] > 0.3
    beat.qrs[late, 3] *= 0.55
    q = np.array([[0.21, 0.105, 0.06, -0.62 * _draw(rng, 0.9, 1.35), 0.0]])
    beat.qrs = np.vstack([q, beat.qrs])
    beat.qrs_ms += _draw(rng, 4, 10)
    if rng.random() < 0.5:
        beat.t[1] = -abs(beat.t[1]) * _draw(rng, 0.4, 1.0)


def old_anterior_infarct(draft: Draft, rng: np.random.Generator) -> None:
    """QS or broad Q in V1-V3 (often V4): no anterior forces; T often inverted there."""
    beat = draft.beat
    early = (beat.qrs[:, 0] < 0.3) & (beat.qrs[:, 1] > 0)
    beat.qrs[early, 2:] = np.array([-0.06, -0.02, 0.52]) * _draw(rng, 0.85, 1.2)
    beat.qrs[early, 1] = 0.085
    middle = (beat.qrs[:, 0] > 0.3) & (beat.qrs[:, 0] < 0.7)
    beat.qrs[middle, 4] += _draw(rng, 0.42, 0.62)
    beat.qrs[middle, 2] *= 0.75
    if rng.random() < 0.5:
        beat.t = np.array([0.1, 0.2, abs(beat.t[2]) + 0.12])


def long_qt(draft: Draft, rng: np.random.Generator) -> None:
    """QTc (Bazett) over 480 ms; the T wave broad or late."""
    draft.beat.qtc_ms = _draw(rng, 505, 585)
    draft.beat.t_width *= _draw(rng, 0.8, 1.25)
    draft.rhythm.rate = min(draft.rhythm.rate, 92 if draft.age > 6 else 115)


def low_voltage(draft: Draft, rng: np.random.Generator) -> None:
    """Under 0.5 mV peak to peak in every limb lead; the chest leads are small too."""
    beat = draft.beat
    goal = _draw(rng, 0.26, 0.43)
    chest = _draw(rng, 0.45, 0.75)
    beat.qrs[:, 2:] *= chest
    beat.limb_gain = goal / shapes.limb_voltage_mv(shapes.qrs_leads(beat, draft.lead_field))
    beat.t = beat.t * _draw(rng, 0.45, 0.8)
    beat.p = beat.p / max(beat.limb_gain, 0.5)
