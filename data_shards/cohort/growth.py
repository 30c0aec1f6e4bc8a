"""A healthy heart from birth to adulthood, held to the published norms of its age (`norms`).

The dipole of a newborn is that of a dominant right ventricle: it points right and forwards, R in V1 exceeds S, the axis
is near +135 degrees. Within months the axis turns left, within years R in V1 falls below S. T in V1 is upright in the
first days, negative through childhood, upright again from about 8 to 14 years (Dickinson, Heart 91:1626, 2005). Read by
the limits of adults, most healthy newborns have right ventricular hypertrophy.
"""

from __future__ import annotations

import numpy as np

from cardialign.data_shards.cohort import morphology as shapes
from cardialign.data_shards.cohort.morphology import Morphology
from cardialign.data_shards.cohort.norms import ADULT, DAYS_A_YEAR, limits

_HEALTHY = 1.85
"""Standard deviations that a healthy child keeps within, beside what beats and noise add."""
_FRONTAL = (0, 0.08, 0.17, 1, 4, 7, 12, 18), (0.55, 0.68, 0.62, 0.60, 0.75, 1.05, 1.3, 1.3)
"""Years -> what the frontal part of the dipole is of that between adult and newborn: from R in V6 by the norms."""
_ANGLES = np.radians(np.arange(0, 360, 0.5))
_V1, _V6 = 2, 7  # rows of the independent leads


def usual_rate(age: float, deviations: float) -> float:
    """Resting rate of a healthy child, beats per minute."""
    low, _, high = limits("rate", age)
    return float(np.clip(limits("rate", age).at(deviations), low + 2, high - 2))


def normal_beat(age: float, male: bool, lead_field: np.ndarray, rng: np.random.Generator) -> Morphology:
    """As `morphology.normal_beat`, which it is from 18 years on."""
    shape = shapes.normal_beat(age, male, lead_field, rng)
    apart = np.clip(rng.standard_normal(6), -_HEALTHY, _HEALTHY).tolist()
    first_negative, upright_again = float(rng.uniform(2, 7)) / DAYS_A_YEAR, float(rng.uniform(7.5, 14))
    if age >= ADULT:
        return shape
    for name, measure, deviations in zip(("pr_ms", "qrs_ms", "qtc_ms"), ("pr", "qrs", "qtc"), apart[:3], strict=True):
        setattr(shape, name, limits(measure, age).at(deviations))
    r_v1 = max(limits("r_v1", age).at(apart[3]), 0.08)
    ratio = limits("r_v1", age).middle / max(limits("s_v1", age).middle, 0.05) * float(np.exp(0.4 * apart[4]))
    set_depolarisation(shape, lead_field, age, limits("axis", age).at(apart[5]), (r_v1, r_v1 / ratio), rng)
    tallest = limits("r_v6", age).at(_HEALTHY) / max(float(shapes.qrs_leads(shape, lead_field)[_V6].max()), 0.01)
    deepest = limits("s_v1", age).at(_HEALTHY) / max(-float(shapes.qrs_leads(shape, lead_field)[_V1].min()), 0.01)
    shape.qrs[:, 2:] *= min(1.0, tallest, deepest)
    if age < first_negative:
        shape.t = np.array([0.07, 0.15, -0.15]) * (1 + 0.15 * rng.standard_normal(3))
    elif age < upright_again:
        shape.t[2] = abs(shape.t[2]) + 0.05
    else:
        shape.t[2] = -abs(shape.t[2]) - 0.14
    return shape


def v1_waves(shape: Morphology, lead_field: np.ndarray) -> tuple[float, float]:
    """R and S of the QRS in V1, both positive mV."""
    lead = shapes.qrs_leads(shape, lead_field)[_V1]
    return float(lead.max()), float(-lead.min())


def _turn(shape: Morphology, lead_field: np.ndarray, degrees: float) -> None:
    """Turn the QRS loop in the frontal plane to this axis, by trying all angles: stepwise turning
    (`morphology.turn_to_axis`) does not arrive where a dipole that points forwards leaves I and aVF little."""
    x, y, z = shape.qrs[:, 1] @ shape.qrs[:, 2:]
    cos, sin = np.cos(_ANGLES), np.sin(_ANGLES)
    one, two = lead_field[:2] @ np.stack([cos * x - sin * y, sin * x + cos * y, np.full_like(cos, z)])
    found = np.degrees(np.arctan2((two - one / 2) * 2 / np.sqrt(3), one))
    best = int(np.argmin(np.abs((found - degrees + 180) % 360 - 180)))
    x, y = shape.qrs[:, 2].copy(), shape.qrs[:, 3].copy()
    shape.qrs[:, 2], shape.qrs[:, 3] = cos[best] * x - sin[best] * y, sin[best] * x + cos[best] * y


def set_depolarisation(
    shape: Morphology,
    lead_field: np.ndarray,
    age: float,
    axis: float,
    v1: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    """A QRS between that of an adult and of a newborn (and beyond), with this axis in degrees, and R and S of V1 in mV.

    How far to go is found by halving: the share of the right ventricle raises R against S. The loop is the person's
    own: no two children of an age have the same.
    """
    (r_v1, s_v1), frontal = v1, float(np.interp(age, *_FRONTAL) * np.exp(0.2 * rng.standard_normal()))
    own, later = 1 + 0.15 * rng.standard_normal((4, 3)), 0.01 * rng.standard_normal(4)
    low, high = -0.6, 1.8
    for _ in range(14):
        right = (low + high) / 2
        shape.qrs = shapes.between_adult_and_newborn(right)
        shape.qrs[:, 2:] *= own
        shape.qrs[:, 2:4] *= frontal
        shape.qrs[:, 0] += later
        _turn(shape, lead_field, axis)
        r, s = v1_waves(shape, lead_field)
        low, high = (right, high) if r * s_v1 < s * r_v1 else (low, right)
    r, s = v1_waves(shape, lead_field)
    shape.qrs[:, 2:] *= (r_v1 + s_v1) / max(r + s, 1e-6)
