"""Storage formats of WFDB signal files, https://physionet.org/physiotools/wag/signal-5.htm: bytes -> counts.

Tests hold every one equal to the `wfdb` package, which reads no header but its own and joins leads before anybody can
look at them.
"""

from __future__ import annotations

import io

import numpy as np

from cardialign.data_shards.errors import RecordRejected

NULL = 0
"""The format of a signal that is not stored."""
DIFFERENCES = 8
FLAC = {508: 8, 516: 16, 524: 24}
"""Format -> the bits it holds at most."""
MOST_CLAIMED = 1 << 26
"""Samples that a header or a compressed file may claim without bytes behind them."""
_BLOCKS = {8: (1, 1), 16: (1, 2), 24: (1, 3), 32: (1, 4), 61: (1, 2), 80: (1, 1), 160: (1, 2), 212: (2, 3),
           310: (3, 4), 311: (3, 4)}  # fmt: skip
"""Format -> samples per block, bytes per block."""
_BITS = {16: 16, 24: 24, 32: 32, 61: 16, 80: 8, 160: 16, 212: 12, 310: 10, 311: 10, **FLAC}
_PLAIN = {8: "i1", 16: "<i2", 32: "<i4", 61: ">i2"}
_CHUNK = 1 << 20  # libsndfile fails on blocks of more than 2^24 values


def is_known(format_: int) -> bool:
    return format_ == NULL or format_ in _BLOCKS or format_ in FLAC


def no_value(format_: int) -> int | None:
    """The count that means "no value": the lowest. None in format 8, which has none."""
    return None if format_ not in _BITS else -(1 << (_BITS[format_] - 1))


def bytes_of(format_: int, samples: int) -> int:
    """Bytes of so many samples; those of the last block only as far as they are needed."""
    per_block, size = _BLOCKS[format_]
    blocks, rest = divmod(samples, per_block)
    if not rest:
        return blocks * size
    return blocks * size + (4 if format_ == 310 and rest == 2 else -(-rest * size // per_block))


def samples_in(format_: int, size: int) -> int:
    """How many samples so many bytes hold."""
    per_block, block = _BLOCKS[format_]
    samples = max(size, 0) // block * per_block
    while bytes_of(format_, samples + 1) <= size:
        samples += 1
    return samples


def decode(format_: int, data: bytes, offset: int, samples: int) -> np.ndarray:
    """The first `samples` numbers from byte `offset` on, int8, int16 or int32; differences in format 8."""
    if format_ in _PLAIN:
        return np.frombuffer(data, _PLAIN[format_], samples, offset)
    if format_ == 80:
        return np.frombuffer(data, "u1", samples, offset).astype(np.int16) - 128
    if format_ == 160:
        return (np.frombuffer(data, "<u2", samples, offset) ^ np.uint16(1 << 15)).view(np.int16)
    per_block, size = _BLOCKS[format_]
    held = bytes_of(format_, samples)
    blocks = np.zeros((-(-samples // per_block), size), dtype=np.uint8)
    blocks.reshape(-1)[:held] = np.frombuffer(data, "u1", held, offset)
    return _packed(format_, blocks).reshape(-1)[:samples]


def _packed(format_: int, blocks: np.ndarray) -> np.ndarray:
    """uint8 (blocks, bytes) -> int16 or int32 (blocks, samples per block)."""
    if format_ == 24:
        wide = np.zeros((len(blocks), 4), dtype=np.uint8)
        wide[:, 1:] = blocks
        return wide.view("<i4") >> 8
    if format_ == 212:
        first, both, second = blocks.astype(np.uint16).T
        pair = np.stack([first | (both & 0x0F) << 8, second | (both & 0xF0) << 4], axis=1)
        return (pair << 4).view(np.int16) >> 4
    if format_ == 311:
        word = np.ascontiguousarray(blocks).view("<u4")
        three = (word >> np.array([0, 10, 20], dtype=np.uint32) & 0x3FF).astype(np.uint16)
    else:
        a, b, c, d = blocks.astype(np.uint16).T
        three = np.stack([a >> 1 | (b & 7) << 7, c >> 1 | (d & 7) << 7, b >> 3 | d >> 3 << 5], axis=1)
    return (three << 6).view(np.int16) >> 6


def decode_flac(data: bytes, file: str, format_: int, leads: int, start: int, most: int | None) -> np.ndarray:
    """int32 (samples, leads) of a FLAC file from sample `start` on, at most `most` samples of each lead.

    Raises RecordRejected: bad-format.
    """
    if not data.startswith(b"fLaC"):
        raise RecordRejected("bad-format", f"{file}: its header says FLAC (format {format_}), which it is not")
    import soundfile  # here: few records are compressed

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as stream:
            bits = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}.get(stream.subtype, 99)
            if stream.channels != leads or bits > FLAC[format_]:
                raise RecordRejected(
                    "bad-format",
                    f"{file}: {stream.channels} channels of {stream.subtype}, expected {leads} of at most "
                    f"{FLAC[format_]} bits",
                )
            samples = max(stream.frames - start, 0)
            if most is not None:
                samples = min(samples, most)
            check_claim(samples * leads, 8 * len(data), file)
            stream.seek(min(start, stream.frames))
            values = np.empty((samples, leads), dtype=np.int32)
            at = 0
            while at < samples:
                got = len(stream.read(out=values[at : at + _CHUNK]))
                if not got:
                    break
                at += got
    except RuntimeError as error:
        raise RecordRejected("bad-format", f"{file}: the FLAC stream cannot be decoded: {error}") from None
    return values[:at] >> (32 - bits)


def check_claim(samples: int, backed: int, where: str) -> None:
    """Raises RecordRejected("bad-format") when so many samples are claimed that the `backed` ones do not explain them,
    before memory is taken."""
    if samples > max(MOST_CLAIMED, 16 * backed):
        raise RecordRejected(
            "bad-format",
            f"{where}: {samples} samples are claimed, for which there is no data: cut the record into parts",
        )
