"""The shape of a beat: P, QRS, ST and T of one person by age and sex, and the measures that findings are held to.

Normal limits by age follow Rijnbeek et al., Eur Heart J 22:702, 2001 (children) and Surawicz et al., Circulation
119:e235, 2009 (adults).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from cardialign.data_shards.cohort.dipole import frontal_axis, limb_values, loops

Vector = np.ndarray  # float (3,): x left, y feet, z back, mV

# QRS waves: centre and width as fractions of the QRS duration, then the vector: septum, free wall, posterior wall, base
# of the ventricles.
_ADULT_QRS = np.array(
    [
        [0.20, 0.075, -0.14, 0.00, -0.30],
        [0.44, 0.100, 1.05, 0.80, 0.02],
        [0.61, 0.095, 0.50, 0.38, 0.62],
        [0.80, 0.070, -0.16, -0.18, 0.30],
    ]
)
_NEWBORN_QRS = np.array(
    [
        [0.20, 0.075, 0.06, 0.02, -0.20],
        [0.44, 0.100, -0.20, 0.55, -0.78],
        [0.61, 0.095, -0.45, 0.38, -0.35],
        [0.80, 0.075, -0.38, -0.15, 0.16],
    ]
)


@dataclass
class Morphology:
    """One kind of beat. Times in ms from QRS onset unless named otherwise; vectors in mV.

    qrs (K, 5): centre and width as fractions of `qrs_ms`, x, y, z. `p` (2, 3): right then left atrium. `pr_segment` and
    `st`: plateaus before and after the QRS. `qtc_ms` at 60/min. `spike`: pacing stimulus just before the QRS.
    `limb_gain`: extra factor of I and II alone.
    """

    qrs: np.ndarray
    qrs_ms: float
    p: np.ndarray
    p_ms: float
    pr_ms: float
    st: Vector
    t: Vector
    qtc_ms: float
    t_width: float = 1.0
    pr_segment: Vector = field(default_factory=lambda: np.zeros(3))
    spike: Vector | None = None
    limb_gain: float = 1.0

    def copy(self) -> Morphology:
        return replace(
            self,
            qrs=self.qrs.copy(),
            p=self.p.copy(),
            st=self.st.copy(),
            t=self.t.copy(),
            pr_segment=self.pr_segment.copy(),
        )

    def qt_ms(self, rr_s: np.ndarray) -> np.ndarray:
        """QT in ms of beats with preceding RR in s.

        The exponent lies between Bazett's and Fridericia's, as measured in people.
        """
        return np.asarray(self.qtc_ms * np.clip(rr_s, 0.25, 1.6) ** 0.42)


def lead_gain(lead_field: np.ndarray, shape: Morphology) -> np.ndarray:
    """Lead field (8, 3) with the beat's own limb gain."""
    gain = np.ones((8, 1))
    gain[:2] = shape.limb_gain
    return lead_field * gain


def qrs_leads(shape: Morphology, lead_field: np.ndarray) -> np.ndarray:
    """The QRS alone, (8, ms) mV, one sample per ms from 40 ms before onset to 60 ms after its end."""
    times = np.arange(-40, shape.qrs_ms + 60)
    phase = (times[None, :] - shape.qrs[:, :1] * shape.qrs_ms) / (shape.qrs[:, 1:2] * shape.qrs_ms)
    return np.asarray(lead_gain(lead_field, shape) @ (shape.qrs[:, 2:].T @ np.exp(-0.5 * phase**2)))


def qrs_axis(shape: Morphology, lead_field: np.ndarray) -> float:
    """Frontal axis in degrees from the net areas of the QRS in I and aVF."""
    area = lead_field[:2] @ (shape.qrs[:, 1] @ shape.qrs[:, 2:])
    return frontal_axis(area[0], area[1] - area[0] / 2)


def vector_axis(vector: Vector, lead_field: np.ndarray) -> float:
    """Frontal axis in degrees of one vector (P or T)."""
    one, two = lead_field[:2] @ vector
    return frontal_axis(one, two - one / 2)


def turn_to_axis(shape: Morphology, lead_field: np.ndarray, degrees: float) -> None:
    """Turn the QRS loop in the frontal plane until its axis is `degrees`.

    Lead space is skewed against the body's, so it takes a few turns.
    """
    for _ in range(6):
        off = np.radians((degrees - qrs_axis(shape, lead_field) + 180) % 360 - 180)
        if abs(off) < 0.01:
            return
        cos, sin = np.cos(off), np.sin(off)
        x, y = shape.qrs[:, 2].copy(), shape.qrs[:, 3].copy()
        shape.qrs[:, 2], shape.qrs[:, 3] = cos * x - sin * y, sin * x + cos * y


def sokolow_mv(leads: np.ndarray) -> float:
    """Sokolow-Lyon voltage in mV: S in V1 plus the taller R of V5 and V6."""
    return float(-leads[2].min() + max(leads[6].max(), leads[7].max()))


def limb_voltage_mv(leads: np.ndarray) -> float:
    """Largest peak-to-peak QRS of the six limb leads, mV."""
    return float(np.ptp(limb_values(leads), axis=1).max())


def _by_age(age: float, ages: tuple[float, ...], values: tuple[float, ...]) -> float:
    return float(np.interp(age, ages, values))


def usual_rate(age: float, rng: np.random.Generator) -> float:
    """Resting heart rate in beats per minute, within normal limits for age."""
    middle = _by_age(age, (0, 0.1, 0.5, 1, 3, 6, 12, 16, 90), (128, 145, 135, 122, 108, 92, 80, 74, 72))
    low, high = normal_rate(age)
    return float(np.clip(middle + 0.08 * middle * rng.standard_normal(), low + 3, high - 4))


def normal_rate(age: float) -> tuple[float, float]:
    """Lower and upper limit of the normal heart rate for age in years, beats per minute."""
    return (
        _by_age(age, (0, 0.25, 1, 3, 6, 12, 16), (100, 105, 95, 80, 70, 60, 60)),
        _by_age(age, (0, 0.25, 1, 3, 6, 12, 16), (165, 170, 150, 135, 120, 110, 100)),
    )


def between_adult_and_newborn(right: float) -> np.ndarray:
    """QRS waves (4, 5) as `Morphology.qrs`: 0 an adult's, 1 those of a newborn with its dominant right ventricle."""
    return (1 - right) * _ADULT_QRS + right * _NEWBORN_QRS


def normal_beat(age: float, male: bool, lead_field: np.ndarray, rng: np.random.Generator) -> Morphology:
    """A healthy person's beat: right-sided and fast in the newborn, T inversion in V1-V3 through childhood, the axis
    turning left with age."""
    right = _by_age(age, (0, 0.08, 0.25, 1, 3, 6, 12), (1.0, 0.9, 0.55, 0.32, 0.18, 0.08, 0.0))
    qrs = between_adult_and_newborn(right)
    qrs[:, 2:] *= 1 + 0.10 * rng.standard_normal((4, 3))
    qrs[:, 0] += 0.008 * rng.standard_normal(4)
    size = _by_age(age, (0, 1, 6, 16, 30, 60, 90), (0.95, 1.05, 1.15, 1.15, 1.0, 0.92, 0.85)) * np.exp(
        0.13 * rng.standard_normal()
    )
    qrs[:, 2:] *= size * (1.05 if male else 0.95)
    # T points forward in adults and in the first days of life, backward (inverted in V1-V3) in between.
    backward = _by_age(age, (0, 0.01, 0.03, 8, 13, 18), (-0.06, -0.02, 0.20, 0.17, 0.0, -0.15 if male else -0.11))
    t = (
        np.array([0.33, 0.24, backward])
        * (1 + 0.1 * rng.standard_normal(3))
        * _by_age(age, (0, 0.1, 1, 20, 90), (0.6, 0.75, 1.0, 1.0, 0.85))
    )
    small = _by_age(age, (0, 16), (0.9, 1.0))
    shape = Morphology(
        qrs=qrs,
        qrs_ms=_by_age(age, (0, 1, 6, 12, 18, 90), (58, 64, 72, 80, 88, 92))
        + (4 if male and age > 12 else 0)
        + 4 * rng.uniform(-1, 1),
        p=np.array([[0.05, 0.11, -0.06], [0.10, 0.05, 0.05]]) * small * (1 + 0.12 * rng.standard_normal((2, 3))),
        p_ms=_by_age(age, (0, 1, 6, 16, 90), (62, 70, 82, 96, 106)) + 4 * rng.standard_normal(),
        pr_ms=_by_age(age, (0, 1, 6, 12, 18, 90), (102, 112, 128, 140, 150, 166)) + 8 * rng.uniform(-1.5, 1.5),
        st=np.array([0.012, 0.01, -0.03 if male else -0.015]) * rng.uniform(0.3, 1.3) * (age > 5),
        t=t,
        qtc_ms=_by_age(age, (0, 1, 18, 90), (395, 400, 398, 408))
        + (0 if male or age < 15 else 8)
        + float(np.clip(9 * rng.standard_normal(), -22, 18)),
        t_width=float(np.exp(0.08 * rng.standard_normal())),
    )
    axis = (
        _by_age(age, (0, 0.1, 0.25, 1, 6, 20, 40, 60, 90), (125, 108, 78, 62, 62, 60, 48, 32, 14))
        + 13 * rng.standard_normal()
    )
    turn_to_axis(
        shape, lead_field, float(np.clip(axis, *((85, 150) if age < 0.08 else (-12, 95) if age < 1 else (-15, 84))))
    )
    _within_normal_voltage(shape, lead_field, age)
    return shape


def _within_normal_voltage(shape: Morphology, lead_field: np.ndarray, age: float) -> None:
    """Healthy means: neither the voltage of hypertrophy nor low voltage."""
    leads = qrs_leads(shape, lead_field)
    if age >= 16 and sokolow_mv(leads) > 3.1:
        shape.qrs[:, 2:] *= 3.1 / sokolow_mv(leads)
    if limb_voltage_mv(qrs_leads(shape, lead_field)) < 0.8:
        shape.qrs[:, 2:] *= 0.8 / limb_voltage_mv(qrs_leads(shape, lead_field))


def beat_loops(
    shape: Morphology, onsets: np.ndarray, rr: np.ndarray, strength: np.ndarray, samples: int, sampling_rate: float
) -> np.ndarray:
    """QRS, ST and T of beats with QRS onsets in s (b,): heart vector float32 (3, T).

    `rr` s (b,) sets QT, `strength` (b,) the amplitude.
    """
    if not len(onsets):
        return np.zeros((3, samples), dtype=np.float32)
    width = shape.qrs_ms / 1000
    qt = shape.qt_ms(rr)[:, None] / 1000
    one = np.ones((len(onsets), 1))
    start, size = onsets[:, None], strength[:, None, None]
    after_qrs = qt - width
    t_right = np.minimum(0.085 * qt, 0.17 * after_qrs) * shape.t_width
    t_left = 1.45 * t_right
    t_peak = qt - 2.2 * t_right
    # The ST plateau: four Gaussians from the J point to the T peak; the weights make their sum flat and one, the first
    # rises within the QRS.
    spacing = (t_peak - width - 0.004) / 3.4
    st_centre = width + 0.004 + spacing * np.arange(4)
    st_left = np.concatenate([0.2 * width * one, (0.8 * spacing) * np.ones((1, 3))], axis=1)
    st_weight = np.array([1.5, 1.0, 1.0, 0.8]) / 2.0
    qrs_centre, qrs_width = one * (shape.qrs[:, 0] * width), one * (shape.qrs[:, 1] * width)
    centre = start + np.concatenate([qrs_centre, st_centre, t_peak], axis=1)
    left = np.concatenate([qrs_width, st_left, t_left], axis=1)
    right = np.concatenate([qrs_width, 0.8 * spacing * np.ones((1, 4)), t_right], axis=1)
    vectors = np.concatenate([shape.qrs[:, 2:], st_weight[:, None] * shape.st, shape.t[None, :]])
    vector = (size * vectors).reshape(-1, 3)
    return loops(centre.ravel(), left.ravel(), right.ravel(), vector, samples, sampling_rate)


def atrial_loops(
    p: np.ndarray,
    p_ms: float,
    onsets: np.ndarray,
    pr: np.ndarray,
    pr_segment: Vector,
    samples: int,
    sampling_rate: float,
) -> np.ndarray:
    """P waves with onsets in s (a,) and, where pericarditis lowers it, the PR segment up to the QRS: heart vector
    float32 (3, T)."""
    if not len(onsets):
        return np.zeros((3, samples), dtype=np.float32)
    length = p_ms / 1000
    one = np.ones((len(onsets), 1))
    centre = [one * 0.36 * length, one * 0.64 * length]
    width = [one * 0.15 * length] * 2
    vectors = [p[0], p[1]]
    if pr_segment.any():
        centre += [(0.5 * (length + pr))[:, None], (pr + 0.01)[:, None]]
        width += [np.maximum(0.4 * (pr - length), 0.012)[:, None], one * 0.014]
        vectors += [pr_segment, 0.8 * pr_segment]
    widths = np.concatenate(width, axis=1).ravel()
    centres = (onsets[:, None] + np.concatenate(centre, axis=1)).ravel()
    return loops(centres, widths, widths, np.tile(np.array(vectors), (len(onsets), 1)), samples, sampling_rate)
