"""Resampling by a polyphase filter, for the set's rate and for leads of one record that differ in theirs."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def polyphase(signal: np.ndarray, up: int, down: int) -> np.ndarray:
    """Numbers (L, T) -> float (L, ceil(T * up / down)), band-limited to the lower of the two Nyquist rates."""
    from scipy.signal import resample_poly  # here, because it takes most of a second and most records need none

    # Without its offset, or the filter's ripple (0.06 % from phase to phase) would turn a large one into a tone; "line"
    # goes on straight beyond both ends, where zeros would make a step. 32 bits hold every count and half count exactly.
    offset = np.median(signal, axis=1, keepdims=True).astype(np.float32)
    wide: np.ndarray = offset + resample_poly(
        signal - offset,
        up,
        down,
        axis=1,
        window=_low_pass(up, down),
        padtype="line" if signal.shape[1] > 1 else "constant",
    )
    return wide


@lru_cache(maxsize=16)
def _low_pass(up: int, down: int) -> np.ndarray:
    """The filter that `resample_poly` would design anew for every record: Kaiser window (beta 5), cut-off at the lower
    Nyquist rate."""
    from scipy.signal import firwin

    fastest = max(up, down)
    return firwin(20 * fastest + 1, 1.0 / fastest, window=("kaiser", 5.0)).astype(np.float32)
