"""Resampling by a band-limited filter, for the set's rate and for leads of one record that differ in theirs."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np

SAME_WITHIN = 0.5
"""Samples by which the last one may lie beside its time for two rates to be the same: a recorder's measured 499.98 Hz
is 500 Hz for 10 seconds."""
_LARGEST_DENOMINATOR = 10_000
_WITHIN = 0.1
"""Samples that the last one may lie beside its time."""
_BETA = 5.0
_HALF_WIDTH = 10
"""Of the Kaiser-windowed filter, in samples of the lower rate; as in `resample_poly`."""


def is_same_rate(own: float, target: float, samples: int) -> bool:
    """Whether so many samples taken at `own` Hz lie where they would at `target` Hz, to within SAME_WITHIN samples."""
    return abs(target / own - 1) * samples < SAME_WITHIN


def resampled(signal: np.ndarray, ratio: float, samples: int) -> np.ndarray:
    """Numbers (L, T) -> float (L, ceil(T * ratio)) at `ratio` times their rate, right to within a tenth of a sample
    for so many `samples`: by a polyphase filter where a handy fraction is so exact, else at the times themselves."""
    near = Fraction(ratio).limit_denominator(_LARGEST_DENOMINATOR)
    if near and near != 1 and abs(float(near) / ratio - 1) * samples < _WITHIN:
        return polyphase(signal, near.numerator, near.denominator)
    return _at_times(signal, ratio)


def polyphase(signal: np.ndarray, up: int, down: int) -> np.ndarray:
    """Numbers (L, T) -> float (L, ceil(T * up / down)), band-limited to the lower of the two Nyquist rates."""
    from scipy.signal import resample_poly  # here, because it takes most of a second and most records need none

    # Without its offset, or the filter's ripple (0.06 % from phase to phase) would turn a large one into a tone; "line"
    # goes on straight beyond both ends, where zeros would make a step. 32 bits hold every count and half count exactly.
    offset = np.median(signal, axis=1, keepdims=True).astype(np.float32)
    ends = "line" if signal.shape[1] > 1 else "constant"
    wide: np.ndarray = offset + resample_poly(
        signal - offset, up, down, axis=1, window=_low_pass(up, down), padtype=ends
    )
    return wide


def _at_times(signal: np.ndarray, ratio: float) -> np.ndarray:
    """As `polyphase`, for a ratio that no fraction of handy size comes near enough: the filter is computed anew for the
    place of every sample."""
    length = signal.shape[1]
    times = np.arange(math.ceil(length * ratio)) / ratio
    slope = (signal[:, -1:].astype(np.float64) - signal[:, :1]) / max(length - 1, 1)
    line = signal[:, :1] + slope * np.arange(length)
    band = min(ratio, 1.0)
    half = math.ceil(_HALF_WIDTH / band)
    around = np.pad(signal - line, ((0, 0), (half, half + 1)))
    before = np.minimum(times.astype(np.int64), length - 1)
    wide: np.ndarray = signal[:, :1] + slope * times
    for tap in range(1 - half, half + 1):
        apart = times - before - tap
        window = np.i0(_BETA * np.sqrt(np.maximum(1 - (apart / half) ** 2, 0))) / np.i0(_BETA)
        wide += band * np.sinc(band * apart) * window * around[:, before + tap + half]
    return wide


@lru_cache(maxsize=16)
def _low_pass(up: int, down: int) -> np.ndarray:
    """The filter that `resample_poly` would design anew for every record: Kaiser window, cut-off at the lower Nyquist
    rate."""
    from scipy.signal import firwin

    fastest = max(up, down)
    return firwin(2 * _HALF_WIDTH * fastest + 1, 1.0 / fastest, window=("kaiser", _BETA)).astype(np.float32)
