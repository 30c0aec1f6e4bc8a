"""Findings in children, each judged by the norms of the age: what a finding is there, not what it would be in an adult.

A rate of 150 is normal in a newborn and tachycardia at 10 years; R in V1 above S is health at birth and right
ventricular hypertrophy at 10 years. Every change goes beyond the 98th percentile (or below the 2nd) of `norms`,
mostly not far.
Criteria: Davignon 1979/80 and Rijnbeek 2001 for the limits; Dickinson, Heart 91:1626, 2005: between the first week and
8 years an upright T in V1 is a sign of right ventricular hypertrophy. What is not in CHANGES is the same at every age.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cardialign.data_shards.cohort import growth
from cardialign.data_shards.cohort import morphology as shapes
from cardialign.data_shards.cohort import waveform_changes as do
from cardialign.data_shards.cohort.norms import limits
from cardialign.data_shards.cohort.waveform_changes import Draft

Change = Callable[[Draft, np.random.Generator], None]

YOUNGEST: Mapping[str, float] = {"RVH": 0.0, "LVH": 0.0, "RBBB": 0.0, "LAFB": 0.0, "LBBB": 0.5, "AFIB": 1.0}
"""Finding -> years from which it occurs where it is judged by age."""
_WEEK, _T_UPRIGHT = 7 / 365.25, 8.0
_V6 = 7  # row of the independent leads


def _within(draft: Draft) -> None:
    """Not faster than the middle of the age: the change needs room between beats."""
    draft.rhythm.rate = min(draft.rhythm.rate, limits("rate", draft.age).middle)


def _sinus_bradycardia(draft: Draft, rng: np.random.Generator) -> None:
    draft.rhythm.rate = limits("rate", draft.age).low * float(rng.uniform(0.88, 0.99))


def _sinus_tachycardia(draft: Draft, rng: np.random.Generator) -> None:
    draft.rhythm.rate = min(limits("rate", draft.age).high * float(rng.uniform(1.01, 1.12)), 225)
    draft.rhythm.sinus_arrhythmia = 0.01


def _first_degree_block(draft: Draft, rng: np.random.Generator) -> None:
    draft.beat.pr_ms = limits("pr", draft.age).high * float(rng.uniform(1.02, 1.16))
    _within(draft)


def _premature(change: Change) -> Change:
    """Premature beats on a rate that is normal for the age."""

    def changed(draft: Draft, rng: np.random.Generator) -> None:
        rate = min(draft.rhythm.rate, limits("rate", draft.age).middle)
        change(draft, rng)
        draft.rhythm.rate = rate

    return changed


def _wenckebach(draft: Draft, rng: np.random.Generator) -> None:
    do.wenckebach(draft, rng)
    draft.beat.pr_ms = limits("pr", draft.age).high * float(rng.uniform(0.9, 1.1))
    draft.rhythm.rate = limits("rate", draft.age).middle * float(rng.uniform(0.8, 0.95))


def _right_bundle_branch_block(draft: Draft, rng: np.random.Generator) -> None:
    """QRS beyond the limit of the age, rsR' in V1, broad S in I and V6."""
    do.right_bundle_branch_block(draft, rng)
    draft.beat.qrs_ms = limits("qrs", draft.age).high * float(rng.uniform(1.1, 1.4))


def _left_ventricular_hypertrophy(draft: Draft, rng: np.random.Generator) -> None:
    """R in V6 beyond the limit of the age, the left ventricle dominant in V1; strain in a fifth."""
    beat, age = draft.beat, draft.age
    goal = limits("r_v6", age).high * float(rng.uniform(1.01, 1.15))
    deep = limits("s_v1", age).at(float(rng.uniform(0.5, 2.0)))
    axis = limits("axis", age).at(float(rng.uniform(-1.9, 0.0)))
    growth.set_depolarisation(
        beat, draft.lead_field, age, axis, (min(limits("r_v1", age).middle, 0.6 * deep), deep), rng
    )
    for _ in range(6):
        tallest = float(shapes.qrs_leads(beat, draft.lead_field)[_V6].max())
        beat.qrs[:, 2] *= np.clip(goal / max(tallest, 0.05), 0.6, 1.6)
    if rng.random() < 0.2:
        draft.facts["lvh_strain"] = True
        beat.t = np.array([-0.22, -0.05, -0.10]) * float(rng.uniform(0.9, 1.3))


def _right_ventricular_hypertrophy(draft: Draft, rng: np.random.Generator) -> None:
    """R in V1 and the axis beyond the limits of the age; T in V1 upright between the first week and 8 years in some."""
    beat, age = draft.beat, draft.age
    tall = limits("r_v1", age).high * float(rng.uniform(1.01, 1.15))
    axis = min(limits("axis", age).high + float(rng.uniform(1, 8)), 205)
    growth.set_depolarisation(beat, draft.lead_field, age, axis, (tall, tall / float(rng.uniform(2.5, 7))), rng)
    if _WEEK < age < _T_UPRIGHT and rng.random() < 0.2:
        beat.t = np.array([0.12, 0.2, -0.22]) * float(rng.uniform(0.8, 1.2))


def _long_qt(draft: Draft, rng: np.random.Generator) -> None:
    draft.beat.qtc_ms = float(rng.uniform(485, 570))
    _within(draft)


CHANGES: Mapping[str, Change] = {
    "SBRAD": _sinus_bradycardia,
    "STACH": _sinus_tachycardia,
    "1AVB": _first_degree_block,
    "WENCK": _wenckebach,
    "PAC": _premature(do.premature_atrial),
    "PVC": _premature(do.premature_ventricular),
    "RBBB": _right_bundle_branch_block,
    "LVH": _left_ventricular_hypertrophy,
    "RVH": _right_ventricular_hypertrophy,
    "LQT": _long_qt,
}
"""Finding -> how it changes the heart of a child."""
