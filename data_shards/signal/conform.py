"""Bring a record to the `SignalSpec` of a shard set: sampling rate by a polyphase filter, length by cropping or
zero-padding at the end."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from functools import lru_cache

import numpy as np

from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord, SignalSpec
from cardialign.data_shards.signal import quality

_MARGIN_SECONDS = 0.5
"""Signal kept beyond the crop while resampling, so that the filter sees no edge there."""


def conform(record: EcgRecord, spec: SignalSpec) -> EcgRecord:
    """`record` at spec.sampling_rate with exactly spec.samples samples.

    Longer records keep their first spec.seconds, shorter ones are zero-padded (`valid_samples` says how far the signal
    goes). The gain stays; counts are rounded, and a lead whose resampled peaks leave 16 bits gets the flag "clipped".
    The original rate and length go to `extra` (original_sampling_rate in Hz, original_samples). A record that conforms
    already is returned as it is, without a copy.
    """
    same_rate = math.isclose(record.sampling_rate, spec.sampling_rate, rel_tol=1e-9)
    if same_rate and record.samples == spec.samples:
        return record
    signal = record.counts[:, : record.valid_samples]
    cropped = signal.shape[1] / record.sampling_rate > spec.seconds
    overflow = np.zeros(12, dtype=bool)
    if not same_rate:
        signal, overflow = _resample(signal, record.sampling_rate, spec)
    signal = signal[:, : spec.samples]
    valid = signal.shape[1]
    counts = np.zeros((12, spec.samples), dtype=np.int16)
    counts[:, :valid] = signal
    counts[~record.lead_mask] = 0
    flags = quality.merge(record.quality, {"clipped": [STANDARD_LEADS[i] for i in np.flatnonzero(overflow)]})
    lead_mask = record.lead_mask
    if cropped:  # a lead may be flat in the part that is kept
        flags = quality.merge(flags, quality.assess(signal, record.gain, record.lead_mask, spec.sampling_rate))
        lead_mask = quality.usable(record.lead_mask, flags)
    extra = {**record.extra, "original_sampling_rate": record.sampling_rate, "original_samples": record.valid_samples}
    return dataclasses.replace(
        record,
        counts=counts,
        sampling_rate=spec.sampling_rate,
        valid_samples=valid,
        lead_mask=lead_mask,
        quality=flags,
        extra=extra,
    )


def _resample(signal: np.ndarray, sampling_rate: float, spec: SignalSpec) -> tuple[np.ndarray, np.ndarray]:
    """int16 (12, T) -> int16 (12, T') at spec.sampling_rate, and bool (12,): leads that left 16 bits."""
    from scipy.signal import resample_poly  # here, because it takes most of a second and most records need none

    needed = math.ceil((spec.seconds + _MARGIN_SECONDS) * sampling_rate)
    ratio = Fraction(spec.sampling_rate / sampling_rate).limit_denominator(10_000)
    # Without its offset, or the filter's ripple (0.06 % from phase to phase) would turn a large one into a tone; "line"
    # goes on straight beyond both ends, where zeros would make a step.
    kept = signal[:, :needed]
    # 32 bits hold every count and half count exactly
    offset = np.median(kept, axis=1, keepdims=True).astype(np.float32)
    filter_ = _low_pass(ratio.numerator, ratio.denominator)
    wide = offset + resample_poly(
        kept - offset, ratio.numerator, ratio.denominator, axis=1, window=filter_, padtype="line"
    )
    rounded = np.rint(wide)
    overflow = (np.abs(rounded) > 32767).any(axis=1)
    return np.clip(rounded, -32767, 32767).astype(np.int16), overflow


@lru_cache(maxsize=16)
def _low_pass(up: int, down: int) -> np.ndarray:
    """The filter that `resample_poly` would design anew for every record: Kaiser window (beta 5), cut-off at the lower
    Nyquist rate."""
    from scipy.signal import firwin

    fastest = max(up, down)
    return firwin(20 * fastest + 1, 1.0 / fastest, window=("kaiser", 5.0)).astype(np.float32)
