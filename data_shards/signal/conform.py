"""Bring a record to the `SignalSpec` of a shard set: sampling rate by a polyphase filter, length by cropping or
zero-padding at the end."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord, SignalSpec
from cardialign.data_shards.signal import quality
from cardialign.data_shards.signal.resample import is_same_rate, resampled
from cardialign.data_shards.signal.sixteen_bits import coarse, counts_per_step, in_steps

_MARGIN_SECONDS = 0.5
"""Signal kept beyond the crop while resampling, so that the filter sees no edge there."""


def conform(record: EcgRecord, spec: SignalSpec) -> EcgRecord:
    """`record` at spec.sampling_rate with exactly spec.samples samples.

    Longer records keep their first spec.seconds, shorter ones are zero-padded (`valid_samples` says how far the
    signal goes). Rates that put no kept sample half a sample from its time are the same, and the samples stay.
    Resampled counts are rounded; a lead whose peaks then leave 16 bits gets a lower gain, all others keep theirs.
    The original rate and length go to `extra` (original_sampling_rate in Hz, original_samples). A record that
    conforms already is returned as it is, without a copy.
    """
    if math.isclose(record.sampling_rate, spec.sampling_rate, rel_tol=1e-9) and record.samples == spec.samples:
        return record
    signal, gain = record.counts[:, : record.valid_samples], record.gain
    flags = quality.merge(record.quality)
    same_rate = is_same_rate(record.sampling_rate, spec.sampling_rate, min(record.valid_samples, spec.samples))
    cropped = record.valid_samples > (spec.samples if same_rate else spec.seconds * record.sampling_rate)
    if not same_rate:
        needed = math.ceil((spec.seconds + _MARGIN_SECONDS) * record.sampling_rate)
        wide = resampled(signal[:, :needed], spec.sampling_rate / record.sampling_rate, spec.samples)
        steps = counts_per_step(wide, gain)
        flags = quality.merge(flags, {"coarse": [STANDARD_LEADS[lead] for lead in coarse(steps, gain)]})
        signal, gain = in_steps(wide, steps), (gain / steps).astype(np.float32)
    signal = signal[:, : spec.samples]
    valid = signal.shape[1]
    counts = np.zeros((12, spec.samples), dtype=np.int16)
    counts[:, :valid] = signal
    counts[~record.lead_mask] = 0
    lead_mask = record.lead_mask
    if cropped:  # a lead may be flat in the part that is kept
        flags = quality.merge(flags, quality.assess(signal, gain, record.lead_mask, spec.sampling_rate))
        lead_mask = quality.usable(record.lead_mask, flags)
    extra = {**record.extra, "original_sampling_rate": record.sampling_rate, "original_samples": record.valid_samples}
    return dataclasses.replace(
        record,
        counts=counts,
        gain=gain,
        sampling_rate=spec.sampling_rate,
        valid_samples=valid,
        lead_mask=lead_mask,
        quality=flags,
        extra=extra,
    )
