"""WFDB records as integer counts: a fast reader of our own for format 16, the `wfdb` package for every other form.

Format 16 in one file (MIMIC-IV-ECG, PTB-XL, CODE-15%, and with a byte offset the .mat files of the PhysioNet
Challenges) is interleaved little-endian int16: one read and one transposition. Tests hold it equal to `wfdb`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.mat5 import is_mat5, read_mat5
from cardialign.data_shards.reading.wfdb.checksums import differing_checksums, holds_more, unexplained_rest
from cardialign.data_shards.reading.wfdb.header import WfdbHeader, read_header
from cardialign.data_shards.record import STANDARD_LEADS

INVALID_16 = -32768
"""WFDB's "no value" in format 16."""
_INT16_MAX = 32767
_BYTES_PER_SAMPLE = {8: 1.0, 16: 2.0, 24: 3.0, 32: 4.0, 61: 2.0, 80: 1.0, 160: 2.0, 212: 1.5}
_LEAD_ROW = {name.casefold(): row for row, name in enumerate(STANDARD_LEADS)}


@dataclass(frozen=True)
class WfdbSignal:
    """A record as stored. counts int16 (L, T) with the baseline already subtracted, so mV = counts / gain; gain float64
    (L,) counts per mV; baseline int64 (L,) as the header gives it; sampling_rate in Hz; flags: quality flag ->
    positions of the leads concerned ("non-finite": samples without a value, set to 0; "clipped": counts that did not
    fit into 16 bits; "checksum": not those of the header; "surplus": the file holds more than it announces)."""

    counts: np.ndarray
    gain: np.ndarray
    baseline: np.ndarray
    lead_names: tuple[str, ...]
    sampling_rate: float
    comments: tuple[str, ...] = ()
    flags: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class StandardLeads:
    """A signal in STANDARD_LEADS order: counts int16 (12, T), gain float32 (12,), lead_mask bool (12,), flags by lead
    name, and the names of channels that are no standard lead."""

    counts: np.ndarray
    gain: np.ndarray
    lead_mask: np.ndarray
    flags: dict[str, tuple[str, ...]]
    other_channels: tuple[str, ...]


def read_wfdb(path: str | Path) -> WfdbSignal:
    """Read the record at `path` (no suffix).

    Raises RecordRejected: missing-file, unreadable-header, truncated-signal, bad-gain, no-signal, bad-format.
    """
    path = Path(path)
    header_file = path.with_name(path.name + ".hea")
    header = read_header(header_file)
    if header.signal_count == 0:
        raise RecordRejected("no-signal", f"{header_file}: the header announces no signal")
    if header.segments or not _is_plain_format_16(header):
        return _read_with_wfdb(path, header, header_file)
    gain = np.array([line.counts_per_millivolt(str(header_file)) for line in header.signals])
    baseline = np.array([line.baseline for line in header.signals], dtype=np.int64)
    stored, surplus = _read_format_16(header_file, header)
    counts, flags = _finish_int16(stored, baseline, header)
    if surplus:
        flags["surplus"] = tuple(range(len(counts)))
    return WfdbSignal(
        counts,
        gain,
        baseline,
        tuple(line.name for line in header.signals),
        header.sampling_rate,
        header.comments,
        flags,
    )


def standard_leads(signal: WfdbSignal, where: str) -> StandardLeads:
    """Reorder by lead name, case-insensitively.

    A lead that the file lacks is all zero and False in the mask; `where` names the record in errors.

    Raises RecordRejected("unknown-leads") when no name is a standard lead, or one occurs twice.
    """
    rows = [_LEAD_ROW.get(_plain_name(name), -1) for name in signal.lead_names]
    known = [row for row in rows if row >= 0]
    if not known:
        raise RecordRejected(
            "unknown-leads",
            f"{where}: leads {', '.join(map(repr, signal.lead_names))}, expected names such as "
            f"{', '.join(STANDARD_LEADS)}",
        )
    if len(set(known)) < len(known):
        twice = next(STANDARD_LEADS[row] for row in known if known.count(row) > 1)
        raise RecordRejected(
            "unknown-leads", f"{where}: lead {twice!r} occurs more than once among {', '.join(signal.lead_names)}"
        )
    flags = {
        flag: tuple(STANDARD_LEADS[row] for row in sorted(rows[i] for i in where_) if row >= 0)
        for flag, where_ in signal.flags.items()
    }
    flags = {flag: leads for flag, leads in flags.items() if leads}
    others = tuple(name for name, row in zip(signal.lead_names, rows, strict=True) if row < 0)
    if rows == list(range(12)):
        return StandardLeads(signal.counts, signal.gain.astype(np.float32), np.ones(12, dtype=bool), flags, others)
    columns = [i for i, row in enumerate(rows) if row >= 0]
    counts = np.zeros((12, signal.counts.shape[1]), dtype=np.int16)
    gain = np.full(
        12, signal.gain[columns[0]], dtype=np.float32
    )  # any positive number: the row is zero, but mV = counts / gain must hold
    lead_mask = np.zeros(12, dtype=bool)
    counts[known] = signal.counts[columns]
    gain[known] = signal.gain[columns]
    lead_mask[known] = True
    return StandardLeads(counts, gain, lead_mask, flags, others)


def _plain_name(name: str) -> str:
    """`Lead I`, `ECG_V1`, `DII` (derivation II, as in Brazil) -> i, v1, ii."""
    words = re.split(r"[\s_-]+", name.casefold().strip())
    word = words[-1] if len(words) == 2 and words[0] in ("lead", "ecg") else " ".join(words)
    return word[1:] if word in ("di", "dii", "diii") else word


def _is_plain_format_16(header: WfdbHeader) -> bool:
    offset = header.signals[0].byte_offset
    plain = all(
        s.format == 16 and s.samples_per_frame == 1 and s.skew == 0 and s.byte_offset == offset for s in header.signals
    )
    return plain and len(set(header.files)) == 1


def _beside(folder: Path, name: str) -> str:
    """Path of a signal file, which must lie in its header's folder: a header is no reason to read any other file."""
    if os.path.basename(name) != name or not name.strip("."):
        raise RecordRejected(
            "unreadable-header", f"{folder}: signal file {name!r} is not a file name in the header's folder"
        )
    return os.path.join(folder, name)


def _read_format_16(header_file: Path, header: WfdbHeader) -> tuple[np.ndarray, bool]:
    """int16 (T, L) as stored, and whether the file holds more than that for no reason known."""
    file, offset = _beside(header_file.parent, header.files[0]), header.signals[0].byte_offset
    try:
        with open(file, "rb", buffering=0) as stream:
            data = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        raise RecordRejected("missing-file", f"{file}: no such signal file") from None
    except OSError as error:
        raise RecordRejected("bad-format", f"{file}: {error.strerror or error}") from None
    leads = header.signal_count
    if is_mat5(data):
        return _read_mat_5(file, header), False
    available = len(data) - offset
    samples = header.samples if header.samples is not None else max(available, 0) // (2 * leads)
    expected = 2 * leads * samples
    if available < expected:
        raise RecordRejected(
            "truncated-signal",
            f"{file}: {len(data)} bytes, expected {expected + offset} ({leads} leads x {samples} samples)",
        )
    if samples == 0:
        raise RecordRejected("no-signal", f"{file}: {len(data)} bytes hold no sample of {leads} leads")
    stored = np.frombuffer(data, dtype="<i2", count=leads * samples, offset=offset).reshape(samples, leads)
    if available > expected and holds_more(data, expected + offset, 2 * leads):
        return stored, unexplained_rest(
            header, differing_checksums(header, stored.T), file, len(data), expected + offset
        )
    return stored, False


def _read_mat_5(file: str, header: WfdbHeader) -> np.ndarray:
    """int16 (T, L) of a Challenge .mat that somebody saved again: MATLAB 5 keeps `val` elsewhere, often compressed, and
    what the header says of bytes is no longer true (`wfdb` reads noise there)."""
    try:
        values = np.asarray(read_mat5(file, "val"))
    except (OSError, ValueError) as error:
        raise RecordRejected("bad-format", f"{file}: no readable MATLAB variable 'val': {error}") from None
    whole = values.ndim == 2 and values.dtype.kind in "iuf" and bool((values == np.rint(values)).all())
    if not whole or np.abs(values, dtype=np.float64).max(initial=0) > -INVALID_16 or len(values) != header.signal_count:
        found = f"{values.dtype} {values.shape}"
        raise RecordRejected(
            "bad-format", f"{file}: 'val' is {found}, expected 16-bit counts ({header.signal_count}, {header.samples})"
        )
    if header.samples is not None and values.shape[1] < header.samples:
        raise RecordRejected("truncated-signal", f"{file}: {values.shape[1]} samples, expected {header.samples}")
    return np.clip(values.T[: header.samples], INVALID_16, _INT16_MAX).astype("<i2")


def _finish_int16(
    stored: np.ndarray, baseline: np.ndarray, header: WfdbHeader
) -> tuple[np.ndarray, dict[str, tuple[int, ...]]]:
    """(T, L) as stored -> counts int16 (L, T) with the baseline subtracted and no INVALID_16 left in them, and
    flags."""
    counts = np.ascontiguousarray(stored.T, dtype=np.int16)
    differing = differing_checksums(header, counts)
    flags: dict[str, tuple[int, ...]] = {"checksum": differing} if differing else {}
    lowest = counts.min(axis=1)
    invalid = counts == INVALID_16 if (lowest == INVALID_16).any() else None
    if baseline.any():
        wide = counts.astype(np.int64) - baseline[:, None]
        overflow = np.abs(wide) > _INT16_MAX
        if invalid is not None:
            overflow &= ~invalid
        if overflow.any():
            flags["clipped"] = _positions(overflow)
        counts = np.clip(wide, -_INT16_MAX, _INT16_MAX).astype(np.int16)
    if invalid is not None:
        counts[invalid] = 0
        flags["non-finite"] = _positions(invalid)
    return counts, flags


def _positions(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask.any(axis=1)).tolist())


def _read_with_wfdb(path: Path, header: WfdbHeader, header_file: Path) -> WfdbSignal:
    """Any other form, through the `wfdb` package.

    Multi-segment records are read in physical units, because their segments may differ in gain, and put back onto the
    counts of the first segment.
    """
    import wfdb  # here: it costs a second, and builds of the large sets never need it

    longer = _check_signal_files(path.parent, header)
    try:
        record: Any = wfdb.rdrecord(str(path), physical=bool(header.segments))
    except FileNotFoundError as error:
        raise RecordRejected("missing-file", f"{path}: {error}") from None
    except Exception as error:  # the package raises many kinds, bare Exception among them
        raise RecordRejected(
            "bad-format", f"{path}: the wfdb package cannot read it: {type(error).__name__}: {error}"
        ) from None
    names = tuple(str(name or "") for name in record.sig_name)
    lines = _lines_of(record, names)
    gain = np.array([line.counts_per_millivolt(str(header_file)) for line in lines])
    baseline = np.array([line.baseline for line in lines], dtype=np.int64)
    differing: tuple[int, ...] = ()
    surplus: list[bool] = []
    if header.segments:
        physical = np.asarray(record.p_signal, dtype=np.float64).T
        invalid = ~np.isfinite(physical)
        wide = np.where(invalid, 0.0, physical) * np.array([line.gain for line in lines])[:, None]
    else:
        digital = np.asarray(record.d_signal, dtype=np.int64).T
        whole = all(line.samples_per_frame == 1 and not line.skew for line in header.signals)
        differing = differing_checksums(header, digital) if whole else ()
        for name, needed in longer.items():
            file = path.parent / name
            surplus.append(unexplained_rest(header, differing, str(file), file.stat().st_size, needed))
        invalid = digital == np.array([_invalid_value(format_) for format_ in record.fmt])[:, None]
        wide = np.where(invalid, 0, digital - baseline[:, None]).astype(np.float64)
    if wide.shape[1] == 0:
        raise RecordRejected("no-signal", f"{path}: the record holds no sample")
    scale = power_of_two_into_int16(wide)
    concerned = (
        ("checksum", differing),
        ("surplus", tuple(range(len(names))) if any(surplus) else ()),
        ("non-finite", _positions(invalid)),
    )
    flags = {flag: leads for flag, leads in concerned if leads}
    counts = np.rint(wide / scale[:, None]).astype(np.int16)
    return WfdbSignal(
        counts, gain / scale, baseline, names, header.sampling_rate, tuple(record.comments or header.comments), flags
    )


def _lines_of(record: Any, names: Sequence[str]) -> list[Any]:
    from cardialign.data_shards.reading.wfdb.header import SignalLine

    count = len(names)
    gains = getattr(record, "adc_gain", None) or [1000.0] * count  # segments of different gain: 1 uV counts
    baselines = getattr(record, "baseline", None) or [0] * count
    units = getattr(record, "units", None) or ["mV"] * count
    return [
        SignalLine(0, 1, 0, 0, float(gains[i] or math.nan), int(baselines[i] or 0), units[i] or "", names[i])
        for i in range(count)
    ]


def _check_signal_files(folder: Path, header: WfdbHeader) -> dict[str, int]:
    """`wfdb` fails obscurely on short files and takes long ones as they are: compare sizes first, for the formats of
    fixed size.

    Returns the files that hold more than the header announces, with the bytes it does announce.
    """
    longer: dict[str, int] = {}
    bytes_needed: dict[str, float] = {}
    for name, line in zip(header.files, header.signals, strict=True):
        per_sample = _BYTES_PER_SAMPLE.get(line.format, 0.0)
        size = per_sample * line.samples_per_frame * (header.samples or 0)
        bytes_needed[name] = bytes_needed.get(name, float(line.byte_offset)) + size
    for name, needed in bytes_needed.items():
        if name == "~":
            continue
        file = Path(_beside(folder, name))
        if not file.is_file():
            raise RecordRejected("missing-file", f"{file}: no such signal file")
        if file.stat().st_size < math.floor(needed):
            raise RecordRejected(
                "truncated-signal",
                f"{file}: {file.stat().st_size} bytes, expected {math.floor(needed)} for {header.samples} samples",
            )
        sizes = {line.format: _BYTES_PER_SAMPLE.get(line.format) for line in header.signals}
        plain = all(sizes.values()) and all(line.samples_per_frame == 1 and not line.skew for line in header.signals)
        if header.samples and plain:
            frame = math.ceil((needed - header.signals[0].byte_offset) / header.samples)
            if file.stat().st_size - needed >= frame and holds_more(file.read_bytes(), math.ceil(needed), frame):
                longer[name] = math.ceil(needed)
    return longer


def _invalid_value(format_: str) -> int:
    """WFDB's "no value" of a storage format; the lowest number of formats that have none cannot occur."""
    return {
        "212": -2048,
        "310": -512,
        "311": -512,
        "24": -(1 << 23),
        "32": -(1 << 31),
        "8": 1 << 40,
        "80": -128,
        "508": -128,
        "524": -(1 << 23),
    }.get(format_, INVALID_16)


def power_of_two_into_int16(wide: np.ndarray) -> np.ndarray:
    """Per lead, the power of two that brings 24- and 32-bit counts into 16 bits (1 where they fit)."""
    highest = np.abs(wide).max(axis=1)
    return 2.0 ** np.ceil(np.log2(np.maximum(highest / (_INT16_MAX - 0.5), 1.0)))
