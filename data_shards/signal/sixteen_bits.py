"""Counts into the 16 bits of a shard: a lead that does not fit gets coarser counts, and never loses its peaks."""

from __future__ import annotations

import numpy as np

HIGHEST = 32767
_ROUNDED_TO_HIGHEST = HIGHEST + 0.499
COARSE_MILLIVOLTS = 2e-3
"""Steps above this are remarked: values come back within half a step, and 1 uV is finer than any ECG amplifier."""


def counts_per_step(wide: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Numbers (L, T), gain (L,) counts per mV -> float64 (L,): how many counts one step of the 16 bits takes in each
    lead. 1 where they fit.

    Whole counts that have a divisor in common, which brings them into 16 bits, come back exactly; all others within
    half a step, which is a power of two, or where that is coarse the smallest whole number.
    """
    highest = np.abs(wide).max(axis=1, initial=0)
    steps: np.ndarray = 2.0 ** np.ceil(np.log2(np.maximum(highest / _ROUNDED_TO_HIGHEST, 1.0)))
    rough = (steps > 1) & (steps / gain > COARSE_MILLIVOLTS)
    steps[rough] = np.ceil(highest[rough] / _ROUNDED_TO_HIGHEST)
    for row in np.flatnonzero((steps > 1) & (highest < 1 << 53)):
        whole = wide[row].astype(np.int64)
        if (whole == wide[row]).all():
            divisor = int(np.gcd.reduce(whole))
            if highest[row] <= HIGHEST * divisor:
                steps[row] = divisor
    return steps


def in_steps(wide: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Numbers (L, T) -> int16 (L, T), the nearest counts of so many steps each."""
    return np.rint(wide / steps[:, None]).astype(np.int16)


def coarse(steps: np.ndarray, gain: np.ndarray) -> tuple[int, ...]:
    """Positions of the leads (gain: counts per mV before) that lost more than half of COARSE_MILLIVOLTS to their
    steps."""
    return tuple(np.flatnonzero((steps > 1) & (steps / gain > COARSE_MILLIVOLTS)).tolist())
