"""The signal codec: one record -> one self-contained payload and back, bit for bit for every int16 input.

`einthoven`: I, II, V1..V6 are coded as they are. III, aVR, aVL, aVF follow from I and II up to rounding, so their
residuals are coded:

    III - (II - I),   aVR - floor(-(I + II) / 2),   aVL - (I - floor(II / 2)),   aVF - (II - floor(I / 2))

in int16, modulo 2^16 at every step: whatever the leads hold (other gains, swapped electrodes, saturation), adding the
same prediction back restores them. A lead whose residual costs more than the lead itself is coded plainly. Small
residuals of all four leads share one symbol per sample. `npy`: the plain array in NumPy's own format, for those who
want to read shards without this code.

Payload, little-endian: magic, crc32 of all that follows, fixed header, gains (one when all leads share it), block
sizes, blocks.
"""

from __future__ import annotations

import io
import struct
import threading
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pcodec import ChunkConfig, DeltaSpec, ModeSpec
from pcodec.standalone import simple_compress, simple_decompress_into

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.record import EcgRecord

CODECS: tuple[str, ...] = ("einthoven", "npy")
CODEC_VERSION = 1
MAX_SAMPLES = 1 << 24

_MAGIC = b"CECG"
_HEAD = struct.Struct("<4sI")  # magic, crc32 of the rest
# version, codec, leads, predicted leads (bits 0-3: III aVR aVL aVF), packed bits per lead (4 nibbles), packed minima (4
# x int8), lead mask, gains stored (1 or 12), blocks, samples, valid samples, sampling rate
_FIELDS = struct.Struct("<BBBBH4bHBBIId")
_START = _HEAD.size + _FIELDS.size
_LEADS = 12
_DERIVED = (2, 3, 4, 5)
_INDEPENDENT = (0, 1, 6, 7, 8, 9, 10, 11)
_MAX_PACKED_BITS = 10  # wider symbols than pcodec has bins for gain nothing over separate blocks
_LEAD_BITS = 1 << np.arange(_LEADS)
_UNPACKED: tuple[int, ...] = (0, 0, 0, 0)
_LEVEL = 6  # level 8 packs 1 % tighter and decodes 14 % slower
_PROBE = 2048  # samples, from the middle, by which a lead's coding is chosen
_CONFIGS = tuple(
    ChunkConfig(
        compression_level=_LEVEL,
        mode_spec=ModeSpec.classic(),
        delta_spec=DeltaSpec.no_op() if order == 0 else DeltaSpec.try_consecutive(order),
    )
    for order in range(4)
)
_REMEDY = (
    "the payload is damaged or was not written by this codec; run `cardialign shards verify` and build the shard again"
)


@dataclass(frozen=True)
class Header:
    """What a payload says about its signal: `lead_mask` bool (12,), `gain` float32 (12,) counts per mV, `sampling_rate`
    in Hz."""

    codec: str
    leads: int
    samples: int
    valid_samples: int
    sampling_rate: float
    lead_mask: np.ndarray
    gain: np.ndarray


@dataclass(frozen=True)
class _Layout:
    header: Header
    predicted: int
    packed_bits: tuple[int, ...]
    packed_minima: tuple[int, ...]
    sizes: tuple[int, ...]
    body: int  # offset of the first block
    one_gain: bool


def encode(record: EcgRecord, codec: str = "einthoven") -> bytes:
    """Payload of a record's signal, gains, lead mask, rate and valid length. Deterministic.

    Raises UsageError for an unknown codec, DataError for a record that cannot be stored (no samples, gain not finite
    and positive).
    """
    if codec not in CODECS:
        raise UsageError(f"unknown codec {codec!r}", f"choose one of {', '.join(CODECS)}")
    gain = np.asarray(record.gain, dtype=np.float32)
    if not (np.isfinite(gain).all() and (gain > 0).all()):
        raise DataError(
            f"record {record.key}: gain {gain.tolist()} counts per mV is not finite and positive in every lead"
        )
    if not 1 <= record.samples <= MAX_SAMPLES or not 0 <= record.valid_samples <= record.samples:
        raise DataError(
            f"record {record.key}: {record.samples} samples, {record.valid_samples} valid, cannot be stored"
        )
    if codec == "npy":
        array = _npy_head(record.samples) + np.ascontiguousarray(record.counts, dtype="<i2").tobytes()
        blocks, predicted, bits, minima = [array], 0, _UNPACKED, _UNPACKED
    else:
        blocks, predicted, bits, minima = _encode_blocks(np.ascontiguousarray(record.counts))
    gains = gain[:1] if (gain == gain[0]).all() else gain
    mask = int(np.packbits(record.lead_mask, bitorder="little").view(np.uint16)[0])
    nibbles = sum(width << (4 * i) for i, width in enumerate(bits))
    rest = b"".join(
        [
            _FIELDS.pack(
                CODEC_VERSION,
                CODECS.index(codec),
                _LEADS,
                predicted,
                nibbles,
                *minima,
                mask,
                gains.size,
                len(blocks),
                record.samples,
                record.valid_samples,
                record.sampling_rate,
            ),
            gains.astype("<f4").tobytes(),
            np.array([len(block) for block in blocks], dtype="<u4").tobytes(),
            *blocks,
        ]
    )
    return _HEAD.pack(_MAGIC, zlib.crc32(rest)) + rest


def decode_header(payload: bytes) -> Header:
    """The header alone, cheaply. Raises DataError when the payload is not one of ours or is cut."""
    return _layout(payload).header


def decode_counts(payload: bytes, *, verified: bool = False, samples: int | None = None) -> np.ndarray:
    """int16 (12, T), exactly as encoded.

    `verified`: the caller has checked the payload's crc32 already. samples: what T must be, where the caller knows it:
    a payload that claims another number is refused before memory is taken for it. Raises DataError on damage.
    """
    return _decode(payload, verified, samples=samples)[1]


def decode_into(payload: bytes, out: np.ndarray, *, verified: bool = False) -> Header:
    """Write the signal in mV into `out` float32 (12, T): the fast path of the stream.

    Equals `EcgRecord.millivolts()` bit for bit. Raises DataError on damage, and for a payload of another length before
    memory is taken for it.
    """
    if out.ndim != 2 or out.shape[0] != _LEADS or out.dtype != np.float32:
        raise UsageError(f"the buffer is {out.dtype} {out.shape}", f"give one of float32 ({_LEADS}, T)")
    layout, counts = _decode(payload, verified, _SCRATCH, out.shape[1])
    gain = layout.header.gain
    np.divide(counts, gain[0] if layout.one_gain else gain[:, None], out=out, dtype=np.float32, casting="unsafe")
    return layout.header


class _Work:
    """Arrays that a decoding works in, and its targets: counts int16 (12, T), symbol uint16 (T,), predictions and
    residuals (4, T)."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.counts = np.empty((_LEADS, samples), dtype=np.int16)
        self.symbol = np.empty(samples, dtype=np.uint16)
        self.predictions = np.empty((4, samples), dtype=np.int16)
        self.residuals = np.empty((4, samples), dtype=np.uint16)
        independent = [self.counts[lead] for lead in _INDEPENDENT]
        self.packed_targets = [*independent, self.symbol]
        self.plain_targets = [*independent, *(self.counts[lead] for lead in _DERIVED)]


class _Scratch(threading.local):
    """The last `_Work` of every thread: records of a set are all of one length, and memory that is in the cache already
    is decoded into faster."""

    work: _Work | None = None

    def of(self, samples: int) -> _Work:
        if self.work is None or self.work.samples != samples:
            self.work = _Work(samples)
        return self.work


_SCRATCH = _Scratch()


def _predictions(lead_i: np.ndarray, lead_ii: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """int16 (4, T): III, aVR, aVL, aVF from I and II, all modulo 2^16 (twice as fast as int32, and just as
    reversible)."""
    if out is None:
        out = np.empty((4, lead_i.size), dtype=np.int16)
    np.subtract(lead_ii, lead_i, out=out[0])
    np.add(lead_i, lead_ii, out=out[1])
    np.negative(out[1], out=out[1])
    np.subtract(lead_i, lead_ii >> 1, out=out[2])
    np.subtract(lead_ii, lead_i >> 1, out=out[3])
    out[1] >>= 1
    return out


def _best_delta_orders(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of int16 (R, T): the order of differences (0..3) with the least absolute sum, and that sum.

    Heuristic, exactness is not at stake.
    """
    difference = rows.astype(np.int32)
    costs = np.empty((4, rows.shape[0]), dtype=np.int64)
    for order in range(4):
        costs[order] = np.abs(difference[:, order:]).sum(axis=1, dtype=np.int64)
        if order < 3:
            difference[:, order + 1 :] -= difference[:, order:-1].copy()
    if rows.shape[1] <= 8:
        costs[1:] = costs[0] + 1
    best = costs.argmin(axis=0)
    return best, costs[best, np.arange(rows.shape[0])]


def _encode_blocks(counts: np.ndarray) -> tuple[list[bytes], int, tuple[int, ...], tuple[int, ...]]:
    residuals = counts[2:6] - _predictions(counts[0], counts[1])
    start = max(0, (counts.shape[1] - _PROBE) // 2)
    orders, costs = _best_delta_orders(np.concatenate([counts, residuals])[:, start : start + _PROBE])
    predicted = sum(1 << k for k in range(4) if costs[12 + k] <= costs[2 + k])
    blocks = [simple_compress(counts[lead], _CONFIGS[orders[lead]]) for lead in _INDEPENDENT]
    low, high = residuals.min(axis=1).astype(int), residuals.max(axis=1).astype(int)
    bits = tuple(int(h - lo).bit_length() for lo, h in zip(low, high, strict=True))
    if predicted == 15 and sum(bits) <= _MAX_PACKED_BITS and (low >= -128).all() and (low <= 127).all():
        symbol = np.zeros(counts.shape[1], dtype=np.uint16)
        shift = 0
        for k in range(4):
            symbol |= (residuals[k] - np.int16(low[k])).astype(np.uint16) << np.uint16(shift)
            shift += bits[k]
        return [*blocks, simple_compress(symbol, _CONFIGS[0])], predicted, bits, tuple(int(v) for v in low)
    for k, lead in enumerate(_DERIVED):
        coded, order = (residuals[k], orders[12 + k]) if predicted >> k & 1 else (counts[lead], orders[lead])
        blocks.append(simple_compress(coded, _CONFIGS[order]))
    return blocks, predicted, _UNPACKED, _UNPACKED


def _layout(payload: bytes) -> _Layout:
    if len(payload) < _START or payload[:4] != _MAGIC:
        raise DataError(f"not an ECG payload ({len(payload)} bytes, starts with {bytes(payload[:4])!r})", _REMEDY)
    fields = _FIELDS.unpack_from(payload, _HEAD.size)
    version, codec, leads, predicted, nibbles, *rest = fields
    minima, (mask, gains, blocks, samples, valid, rate) = tuple(rest[:4]), rest[4:]
    if version != CODEC_VERSION:
        raise DataError(
            f"ECG payload of codec version {version}; this software reads version {CODEC_VERSION}",
            "use the version that wrote it",
        )
    sizes_at = _START + 4 * gains
    body = sizes_at + 4 * blocks
    legal_blocks = (1,) if codec == 1 else (9, 12)
    if (
        codec >= len(CODECS)
        or leads != _LEADS
        or gains not in (1, _LEADS)
        or blocks not in legal_blocks
        or not 1 <= samples <= MAX_SAMPLES
    ):
        raise DataError("ECG payload with an impossible header", _REMEDY)
    if len(payload) < body or valid > samples:
        raise DataError(f"ECG payload cut inside its header ({len(payload)} bytes)", _REMEDY)
    sizes = struct.unpack_from(f"<{blocks}I", payload, sizes_at)
    if body + sum(sizes) != len(payload):
        raise DataError(f"ECG payload of {len(payload)} bytes; its header says {body + sum(sizes)}", _REMEDY)
    gain = np.empty(_LEADS, dtype=np.float32)
    gain[:] = np.frombuffer(payload, dtype="<f4", count=gains, offset=_START)
    lead_mask = (mask & _LEAD_BITS) != 0
    header = Header(CODECS[codec], leads, samples, valid, rate, lead_mask, gain)
    return _Layout(header, predicted, tuple(nibbles >> 4 * k & 15 for k in range(4)), minima, sizes, body, gains == 1)


def _decode(
    payload: bytes, verified: bool, scratch: _Scratch | None = None, samples: int | None = None
) -> tuple[_Layout, np.ndarray]:
    """Layout and int16 (12, T), which with `scratch` holds until this thread decodes again. samples: what T must be."""
    layout = _layout(payload)
    if samples is not None and layout.header.samples != samples:
        raise DataError(
            f"payload holds ({_LEADS}, {layout.header.samples}) samples, ({_LEADS}, {samples}) are wanted",
            "build the shards with one signal spec",
        )
    if not verified and zlib.crc32(memoryview(payload)[_HEAD.size :]) != _HEAD.unpack_from(payload)[1]:
        raise DataError("ECG payload whose checksum does not match its content", _REMEDY)
    if layout.header.codec == "npy":
        return layout, _decode_npy(payload, layout)
    samples = layout.header.samples
    return layout, _decode_blocks(payload, layout, _Work(samples) if scratch is None else scratch.of(samples))


def _npy_head(samples: int) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<i2", "fortran_order": False, "shape": (_LEADS, samples)})
    return buffer.getvalue()


def _decode_npy(payload: bytes, layout: _Layout) -> np.ndarray:
    # compared rather than parsed: a forged array header must neither run NumPy's parser nor choose how much memory is
    # taken
    samples = layout.header.samples
    head = _npy_head(samples)
    if layout.sizes[0] != len(head) + 2 * _LEADS * samples or not payload.startswith(head, layout.body):
        raise DataError(f"ECG payload whose array is not int16 ({_LEADS}, {samples})", _REMEDY)
    return np.frombuffer(payload, dtype="<i2", offset=layout.body + len(head)).astype(np.int16).reshape(_LEADS, samples)


def _decode_blocks(payload: bytes, layout: _Layout, work: _Work) -> np.ndarray:
    counts = work.counts
    packed = len(layout.sizes) == len(_INDEPENDENT) + 1
    at = layout.body
    for size, target in zip(layout.sizes, work.packed_targets if packed else work.plain_targets, strict=True):
        _decompress(payload[at : at + size], target)
        at += size
    if not packed and not layout.predicted:
        return counts
    predictions = _predictions(counts[0], counts[1], work.predictions)
    if not packed:
        for k, lead in enumerate(_DERIVED):
            if layout.predicted >> k & 1:
                counts[lead] += predictions[k]
        return counts
    shifts, masks, minima = _packing(layout.packed_bits, layout.packed_minima)
    residuals = np.right_shift(work.symbol, shifts, out=work.residuals)
    residuals &= masks
    predictions += minima
    np.add(residuals.view(np.int16), predictions, out=counts[2:6])
    return counts


@lru_cache(maxsize=1024)
def _packing(bits: tuple[int, ...], minima: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(4, 1) shifts, masks and minima of the residuals that share a symbol."""
    widths = np.array(bits, dtype=np.uint16)[:, None]
    shifts = np.cumsum(widths, axis=0, dtype=np.uint16) - widths
    return shifts, (np.uint16(1) << widths) - np.uint16(1), np.array(minima, dtype=np.int16)[:, None]


def _decompress(block: bytes, target: np.ndarray) -> None:
    try:
        progress = simple_decompress_into(block, target)
    except BaseException as error:
        # a panic inside pcodec derives from BaseException; only interrupts may pass
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise DataError(f"ECG payload with an undecodable block: {error}", _REMEDY) from error
    if progress.n_processed != target.size or not progress.finished:
        raise DataError(f"ECG payload block holds {progress.n_processed} of {target.size} samples", _REMEDY)
