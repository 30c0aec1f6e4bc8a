"""The codec alone: records encoded and decoded, and how much smaller than int16 they become, as they are and at other
resolutions.

Beside it zlib over the same int16 counts, which is what `np.savez_compressed` and HDF5's gzip filter do.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from cardialign.data_shards.benchmarks.material import Material, Measurement, rate
from cardialign.data_shards.benchmarks.table import Row
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.signal.codec import decode_into, encode

COUNTS_PER_MV = {"1uV": 1000.0, "5uV": 200.0}
"""PTB-XL is published at 1 uV per count, MIMIC-IV-ECG at 5 uV."""
ZLIB_RECORDS = 48
"""zlib takes so long that a part of the records must do."""

ROWS = (
    Row("size against int16, as stored", "compression_ratio", "x smaller", against={"zlib": "zlib_compression_ratio"}),
    Row(
        "size against int16 at 1 uV per count", "compression_ratio_1uV", "x smaller", at_least=5.0, target_on_real=True
    ),
    Row(
        "size against int16 at 5 uV per count", "compression_ratio_5uV", "x smaller", at_least=8.0, target_on_real=True
    ),
    Row("encode", rate("encode"), "records/s", at_least=500, against={"zlib": rate("zlib_encode")}),
    Row("decode", rate("decode"), "records/s", at_least=5000, against={"zlib": rate("zlib_decode")}),
)


def measure_codec(material: Material) -> Measurement:
    records = material.records
    payloads = [encode(record) for record in records]
    plain = sum(record.counts.nbytes for record in records)
    packed_plain = [record.counts.tobytes() for record in records[:ZLIB_RECORDS]]
    packed = [zlib.compress(each) for each in packed_plain]
    first = records[0]

    def inflate() -> int:
        """To the same float32 mV as the codec."""
        for record, each in zip(records, packed, strict=False):
            np.divide(
                np.frombuffer(zlib.decompress(each), np.int16).reshape(12, -1), record.gain[:, None], dtype=np.float32
            )
        return len(packed)

    def figures() -> dict[str, float]:
        small = sum(map(len, payloads))
        found = {"compression_ratio": plain / small, "bytes_per_record": small / len(payloads)}
        found["zlib_compression_ratio"] = sum(map(len, packed_plain)) / sum(map(len, packed))
        for name, gain in COUNTS_PER_MV.items():
            found[f"compression_ratio_{name}"] = plain / sum(
                len(encode(at_resolution(record, gain))) for record in records
            )
        return found

    jobs = {
        "encode": lambda: sum(bool(encode(record)) for record in records),
        "decode": lambda: decode_all(payloads, first.samples),
        "zlib_encode": lambda: sum(bool(zlib.compress(each)) for each in packed_plain),
        "zlib_decode": inflate,
    }
    return Measurement(jobs, figures, ROWS)


def at_resolution(record: EcgRecord, gain: float) -> EcgRecord:
    """The record with `gain` counts per mV in every lead.

    I, II and V1-V6 are rounded; the other four follow from the rounded I and II, as in the devices, which record eight
    leads.
    """
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
