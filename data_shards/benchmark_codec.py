"""The codec alone: records encoded and decoded, and how much smaller than int16 they become, as they are and at other resolutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_shards.benchmark_material import Material, Measurement
from data_shards.codec import decode_into, encode
from data_shards.record import EcgRecord

COUNTS_PER_MV = {"1uV": 1000.0, "5uV": 200.0}
"""PTB-XL is published at 1 uV per count, MIMIC-IV-ECG at 5 uV."""


def measure_codec(material: Material) -> Measurement:
    records = material.records
    payloads = [encode(record) for record in records]
    plain = sum(record.counts.nbytes for record in records)

    def figures() -> dict[str, float]:
        small = sum(map(len, payloads))
        found = {"compression_ratio": plain / small, "bytes_per_record": small / len(payloads)}
        for name, gain in COUNTS_PER_MV.items():
            found[f"compression_ratio_{name}"] = plain / sum(len(encode(at_resolution(record, gain))) for record in records)
        return found

    return Measurement(
        {"encode": lambda: sum(bool(encode(record)) for record in records), "decode": lambda: decode_all(payloads, records[0].samples)},
        figures,
    )


def at_resolution(record: EcgRecord, gain: float) -> EcgRecord:
    """The record with `gain` counts per mV in every lead. I, II and V1-V6 are rounded; the other four follow from the rounded I and II, as in the
    devices, which record eight leads."""
    if (record.gain == gain).all():
        return record
    counts = np.clip(np.rint(record.millivolts().astype(np.float64) * gain), -32767, 32767)
    i, ii = counts[0], counts[1]
    counts[2:6] = np.clip(np.rint([ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2]), -32767, 32767)
    counts[~record.lead_mask] = 0
    return dataclasses.replace(record, counts=counts.astype(np.int16), gain=np.full(12, gain, dtype=np.float32))


def decode_all(payloads: Sequence[bytes], samples: int) -> int:
    out = np.empty((12, samples), dtype=np.float32)
    for payload in payloads:
        decode_into(payload, out)
    return len(payloads)
