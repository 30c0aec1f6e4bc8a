"""The codec gives back every int16 it was given, or says why it cannot."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.signal.codec import decode_counts, decode_header, decode_into, encode
from tests.support.small_source import heart_counts

LIMITS = np.iinfo(np.int16)
KINDS = ("heart", "random", "constant", "saturated", "swapped", "flat", "residual-offset", "per-lead-gains")


def record_of(counts: np.ndarray, gain: np.ndarray | None = None, **fields: object) -> EcgRecord:
    gain = np.full(12, 200, np.float32) if gain is None else gain
    return EcgRecord("r", np.ascontiguousarray(counts), gain, 500.0, **fields)  # type: ignore[arg-type]


def make_counts(kind: str, samples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    counts = heart_counts(rng, samples)
    if kind == "random":
        return rng.integers(LIMITS.min, LIMITS.max + 1, (12, samples), dtype=np.int16)
    if kind == "constant":
        return np.repeat(rng.integers(LIMITS.min, LIMITS.max + 1, (12, 1), dtype=np.int16), samples, axis=1)
    if kind == "saturated":
        return np.where(
            rng.random((12, samples)) < 0.3, rng.choice([LIMITS.min, LIMITS.max], (12, samples)), counts
        ).astype(np.int16)
    if kind == "swapped":
        return counts[rng.permutation(12)]
    if kind == "flat":
        counts[rng.random(12) < 0.5] = 0
    if kind == "residual-offset":  # Einthoven up to a constant per lead: packed symbols of no bits at all
        i, ii = counts[0], counts[1]
        offsets = rng.integers(-200, 200, 4).astype(np.int16)
        counts[2:6] = np.stack([ii - i, -(i + ii) >> 1, i - (ii >> 1), ii - (i >> 1)]) + offsets[:, None]
    if kind == "per-lead-gains":
        return (counts * rng.uniform(0.2, 3, (12, 1))).round().astype(np.int16)
    return counts


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(KINDS),
    samples=st.one_of(st.integers(1, 40), st.integers(1, 20_000)),
    seed=st.integers(0, 2**32 - 1),
    codec=st.sampled_from(["einthoven", "einthoven", "einthoven", "npy"]),
    one_gain=st.booleans(),
)
def test_every_int16_signal_comes_back_bit_for_bit(
    kind: str, samples: int, seed: int, codec: str, one_gain: bool
) -> None:
    comes_back(kind, samples, seed, codec, one_gain)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(KINDS),
    samples=st.integers(20_001, 100_000),
    seed=st.integers(0, 2**32 - 1),
    one_gain=st.booleans(),
)
@example(kind="heart", samples=100_000, seed=0, one_gain=False)
def test_long_signals_come_back_bit_for_bit(kind: str, samples: int, seed: int, one_gain: bool) -> None:
    comes_back(kind, samples, seed, "einthoven", one_gain)


def comes_back(kind: str, samples: int, seed: int, codec: str, one_gain: bool) -> None:
    counts = make_counts(kind, samples, seed)
    rng = np.random.default_rng(seed)
    gain = (np.full(12, 200.0) if one_gain else rng.uniform(1, 5000, 12)).astype(np.float32)
    record = record_of(counts, gain, lead_mask=rng.random(12) < 0.8, valid_samples=int(rng.integers(0, samples + 1)))
    payload = encode(record, codec)
    assert payload == encode(record, codec)
    np.testing.assert_array_equal(decode_counts(payload), counts)
    header = decode_header(payload)
    assert (header.codec, header.samples, header.valid_samples, header.sampling_rate) == (
        codec,
        samples,
        record.valid_samples,
        500.0,
    )
    np.testing.assert_array_equal(header.gain, gain)
    np.testing.assert_array_equal(header.lead_mask, record.lead_mask)
    out = np.full((12, samples), np.nan, np.float32)
    decode_into(payload, out)
    np.testing.assert_array_equal(out, record.millivolts())


def test_a_physiological_record_takes_less_than_a_fifth_of_its_raw_size() -> None:
    counts = heart_counts(np.random.default_rng(0), 5000)
    assert len(encode(record_of(counts))) * 5 < counts.nbytes
    assert len(encode(record_of(counts))) * 5 < len(encode(record_of(counts), "npy"))


def test_leads_that_break_einthovens_law_cost_no_more_than_coding_them_plainly() -> None:
    counts = make_counts("heart", 5000, 3)
    scaled = counts.copy()
    scaled[2:6] = (np.stack([counts[6], counts[7], counts[8], counts[9]]) * 0.9).astype(np.int16)
    plain = sum(len(encode(record_of(np.repeat(scaled[lead : lead + 1], 12, axis=0)))) / 12 for lead in range(12))
    assert len(encode(record_of(scaled))) < 1.1 * plain


@pytest.mark.parametrize("codec", ["einthoven", "npy"])
def test_a_flipped_bit_anywhere_in_a_payload_and_a_payload_cut_anywhere_is_a_data_error(codec: str) -> None:
    payload = encode(record_of(heart_counts(np.random.default_rng(1), 500)), codec)
    for at in range(0, len(payload), max(1, len(payload) // 300)):
        broken = bytearray(payload)
        broken[at] ^= 0x10
        with pytest.raises(DataError):
            decode_counts(bytes(broken))
    for length in (0, 3, 7, 40, 70, len(payload) // 2, len(payload) - 1):
        with pytest.raises(DataError):
            decode_counts(payload[:length])
    with pytest.raises(DataError):
        decode_counts(payload + b"\0")


@settings(max_examples=150, deadline=None)
@given(at=st.integers(8, 10_000), value=st.integers(0, 255), codec=st.sampled_from(["einthoven", "npy"]))
def test_a_forged_payload_with_a_right_checksum_never_crashes(at: int, value: int, codec: str) -> None:
    payload = bytearray(encode(record_of(heart_counts(np.random.default_rng(2), 200)), codec))
    payload[at % (len(payload) - 8) + 8] = value
    payload[4:8] = struct.pack("<I", zlib.crc32(payload[8:]))
    try:
        shape = decode_counts(bytes(payload)).shape
    except DataError:
        shape = (12, 0)
    assert shape[0] == 12


def test_a_payload_of_a_newer_codec_says_so() -> None:
    payload = bytearray(encode(record_of(np.zeros((12, 10), np.int16))))
    payload[8] = 9
    with pytest.raises(DataError, match="version 9"):
        decode_header(bytes(payload))


def test_records_that_cannot_be_stored_are_refused_by_name() -> None:
    counts = np.zeros((12, 10), np.int16)
    with pytest.raises(DataError, match="record r: gain"):
        encode(record_of(counts, np.zeros(12, np.float32)))
    with pytest.raises(DataError, match="record r: 0 samples"):
        encode(record_of(counts[:, :0]))
    with pytest.raises(UsageError, match="unknown codec 'zip'"):
        encode(record_of(counts), "zip")


def test_the_npy_body_opens_with_numpy_alone() -> None:
    counts = heart_counts(np.random.default_rng(4), 100)
    payload = encode(record_of(counts), "npy")
    np.testing.assert_array_equal(np.load(io.BytesIO(payload[payload.index(b"\x93NUMPY") :])), counts)


def test_real_recordings_compress_more_than_fivefold(real_data: Path) -> None:
    files = sorted((real_data / "ptb-xl" / "records500").glob("*/*.dat"))[:100]
    raw = packed = coarse = 0
    for file in files:
        counts = np.ascontiguousarray(np.fromfile(file, "<i2").reshape(-1, 12).T)
        raw += counts.nbytes
        payload = encode(record_of(counts))
        np.testing.assert_array_equal(decode_counts(payload), counts)
        packed += len(payload)
        coarse += len(encode(record_of(np.round(counts / 5).astype(np.int16))))
    assert raw / packed > 5.0
    assert raw / coarse > 8.0
