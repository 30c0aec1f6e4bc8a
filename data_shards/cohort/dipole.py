"""The cardiac dipole and its lead field: loops as sums of Gaussians over time, projected to the leads of a 12-lead ECG.

Axes of the heart vector are Frank's: x to the left, y to the feet, z to the back. Sources: McSharry et al., IEEE Trans
Biomed Eng 50(3):289, 2003 (Gaussian-sum ECG); Sameni et al., EURASIP J Adv Signal Process 2007:043407 (the same as a
three-dimensional dipole); Dower, Machado and Osborne, Clin Cardiol 3:87, 1980 (lead coefficients).
"""

from __future__ import annotations

import numpy as np

from cardialign.data_shards.record import STANDARD_LEADS

DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)
"""(8, 3) Dower's matrix: mV in the independent leads per mV of the Frank leads X, Y, Z.

The independent leads are the eight that a machine measures, I, II and V1 to V6; the other four follow from I and II.
"""

_REACH = (
    3.6  # standard deviations after which a Gaussian is left out: 0.15 % of its peak, under one count of 5 uV for 3 mV
)


def torso(rng: np.random.Generator) -> np.ndarray:
    """One person's lead field (8, 3): Dower's matrix with the spread of build and electrode placement between
    people."""
    field = DOWER * (1.0 + 0.05 * rng.standard_normal((8, 1)))
    chest = field[2:].copy()
    shift = float(
        rng.uniform(-0.18, 0.18)
    )  # electrodes a little too far right or left: each chest lead leans towards its neighbour
    neighbour = np.vstack([chest[1:], chest[-1:]]) if shift > 0 else np.vstack([chest[:1], chest[:-1]])
    field[2:] = (1 - abs(shift)) * chest + abs(shift) * neighbour
    return field


def loops(
    centre: np.ndarray, left: np.ndarray, right: np.ndarray, vector: np.ndarray, samples: int, sampling_rate: float
) -> np.ndarray:
    """Heart vector float32 (3, T) in mV of n Gaussians: `centre` s (n,), `left`/`right` widths s (n,), `vector` mV (n,
    3)."""
    out = np.zeros((3, samples))
    widest = np.maximum(left, right) * _REACH
    inside = (centre + widest > 0) & (centre - widest < samples / sampling_rate)
    for lower, upper in (
        (0.0, 0.08),
        (0.08, 0.2),
        (0.2, np.inf),
    ):  # narrow QRS waves must not pay for the width of T waves
        chosen = np.flatnonzero(inside & (widest > lower) & (widest <= upper))
        if not len(chosen):
            continue
        reach = int(np.ceil(widest[chosen].max() * sampling_rate))
        first = np.rint(centre[chosen] * sampling_rate).astype(np.int64)
        at = first[:, None] + np.arange(-reach, reach + 1)
        away = (at / sampling_rate - centre[chosen, None]).astype(np.float32)
        steep = np.where(
            away < 0, (1 / left[chosen, None]).astype(np.float32), (1 / right[chosen, None]).astype(np.float32)
        )
        away *= steep
        np.multiply(away, away, out=away)
        away *= np.float32(-0.5)
        shape = np.exp(away, out=away)
        pad = reach + int(upper * sampling_rate if np.isfinite(upper) else widest[chosen].max() * sampling_rate) + 1
        position = (at + pad).ravel()
        for axis in range(3):
            total = np.bincount(position, (shape * vector[chosen, axis, None]).ravel(), minlength=samples + 2 * pad)
            out[axis] += total[pad : pad + samples]
    return out.astype(np.float32)


def twelve_leads(eight: np.ndarray) -> np.ndarray:
    """Counts int16 (12, T) in STANDARD_LEADS order from integer counts (8, T): III and the augmented leads computed
    from I and II, as machines do."""
    one, two = eight[0].astype(np.int32), eight[1].astype(np.int32)
    out = np.empty((len(STANDARD_LEADS), eight.shape[1]), dtype=np.int32)
    out[0], out[1] = one, two
    out[2] = two - one
    out[3] = -((one + two) >> 1)
    out[4] = (2 * one - two) >> 1
    out[5] = (2 * two - one) >> 1
    out[6:] = eight[2:]
    return np.clip(out, -32767, 32767).astype(np.int16)  # -32768 is WFDB's "no sample"


def limb_values(eight: np.ndarray) -> np.ndarray:
    """The six limb leads (6, ...) in STANDARD_LEADS order from I and II in mV (first two rows of `eight`)."""
    one, two = eight[0], eight[1]
    return np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2])


def frontal_axis(lead_i: float, lead_avf: float) -> float:
    """Electrical axis in degrees, -180..180, from net deflections in I and aVF (aVF is 2/sqrt(3) short by Goldberger's
    construction)."""
    return float(np.degrees(np.arctan2(lead_avf * 2 / np.sqrt(3), lead_i)))
