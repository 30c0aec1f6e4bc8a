"""The signal files of one header, decoded by what the header declares, and compared with it.

A frame holds one or several samples of each lead. Leads of the standard twelve set the rate: where all have n samples
per frame, the record has n times the rate of frames, and not a sample is averaged away. Leads that have fewer than the
others are brought to the highest rate by the filter that conforms records (a low-rate lead loses nothing, a high-rate
one keeps its peaks); other channels hold their last sample. A skewed lead is shifted, and has no value where the shift
leaves the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.wfdb import formats
from cardialign.data_shards.reading.wfdb.checksums import differing, holds_more, unexplained_rest
from cardialign.data_shards.reading.wfdb.containers import matrix, other_kind
from cardialign.data_shards.reading.wfdb.files import beside, signal_bytes
from cardialign.data_shards.reading.wfdb.header import SignalLine, WfdbHeader
from cardialign.data_shards.reading.wfdb.leads import rows_of
from cardialign.data_shards.signal.resample import polyphase

INVALID_16 = -32768
"""WFDB's "no value" in the formats of 16 bits."""
_OF_16_BITS = {16, 61, 160, 516}


@dataclass(frozen=True)
class Samples:
    """rows: the counts (L, T) as stored, baseline included: int16 where INVALID_16 is "no value", else float64 where
    NaN is. wrong: leads whose checksum or first value is not the header's. surplus: a file holds more than announced.
    raised: leads that were brought to a higher rate."""

    rows: np.ndarray
    wrong: tuple[int, ...]
    surplus: bool
    raised: tuple[int, ...]


@dataclass(frozen=True)
class _File:
    """One signal file: the leads in it, in their order, and how they are stored."""

    path: str
    leads: tuple[int, ...]
    format: int
    offset: int
    frame: int
    """Samples of all leads in a frame."""


def samples_per_frame(lines: Sequence[SignalLine]) -> int:
    """How many times the rate of frames a record is sampled at."""
    each = {line.samples_per_frame for line in lines}
    if len(each) > 1:
        each = {line.samples_per_frame for line, lead in zip(lines, _are_leads(lines), strict=True) if lead} or each
    return max(each)


def _are_leads(lines: Sequence[SignalLine]) -> list[bool]:
    return [row >= 0 for row in rows_of([line.name for line in lines])[0]]


def read_samples(header: WfdbHeader, header_file: Path, per_frame: int) -> Samples:
    """Read all signal files of `header`, at `per_frame` samples a frame.

    Raises RecordRejected: missing-file, unreadable-header, truncated-signal, no-signal, bad-format.
    """
    stored: list[np.ndarray | None] = [None] * header.signal_count
    wrong: list[int] = []
    surplus = False
    lines = header.signals
    for file in _files(header, header_file):
        rows, left_over, more = _read(header, file)
        of_record = [
            row if header.samples is None else row[: header.samples * lines[k].samples_per_frame]
            for k, row in zip(file.leads, rows, strict=True)
        ]
        here = differing(header, file.leads, of_record)
        surplus |= more and (bool(here) or not header.checksums)
        if left_over:
            surplus |= unexplained_rest(header, file.leads, here, file.path, left_over)
        wrong += here
        for k, counts in zip(file.leads, rows, strict=True):
            stored[k] = counts
    held = [len(row) // line.samples_per_frame for row, line in zip(stored, lines, strict=True) if row is not None]
    frames = header.samples or min(held, default=0)
    if not frames:
        raise RecordRejected("no-signal", f"{header_file}: no sample of {header.signal_count} leads")
    kinds = {(line.samples_per_frame, line.skew, line.format in _OF_16_BITS) for line in lines}
    if kinds == {(per_frame, 0, True)}:
        rows16 = [row[: frames * per_frame] for row in stored if row is not None]
        whole = rows16[0].base  # the rows of one file are one array already
        if not (isinstance(whole, np.ndarray) and whole.shape == (len(lines), frames * per_frame)):
            whole = np.stack(rows16)
        return Samples(whole.astype(np.int16, copy=False), tuple(wrong), surplus, ())
    raised = tuple(
        [
            k
            for k, (line, lead) in enumerate(zip(lines, _are_leads(lines), strict=True))
            if lead and line.samples_per_frame < per_frame
        ]
    )
    backed = sum(len(row) for row in stored if row is not None)
    formats.check_claim(len(lines) * frames * per_frame, backed, str(header_file))
    out = np.full((len(lines), frames * per_frame), np.nan)
    for k, (row, line) in enumerate(zip(stored, lines, strict=True)):
        if row is not None:
            out[k] = _at_rate(_values(row, line, frames), line.samples_per_frame, per_frame, k in raised)
    return Samples(out, tuple(sorted(wrong)), surplus, raised)


def _files(header: WfdbHeader, header_file: Path) -> list[_File]:
    """Raises RecordRejected("bad-format") for a format that is none, and for leads of one file that differ in it."""
    for format_, skew in {(line.format, line.skew) for line in header.signals}:
        if not formats.is_known(format_):
            raise RecordRejected("bad-format", f"{header_file}: a lead is stored in format {format_}, which is none")
        if header.samples is not None and skew >= header.samples:
            raise RecordRejected(
                "unreadable-header", f"{header_file}: a lead is skewed by {skew} of {header.samples} samples"
            )
    leads: dict[str, list[int]] = {}
    for k, name in enumerate(header.files):
        if header.signals[k].format != formats.NULL:
            leads.setdefault(name, []).append(k)
    files: list[_File] = []
    for name, inside in leads.items():
        each = [header.signals[k] for k in inside]
        first = each[0]
        # the first offset counts: some writers put it down once
        if len({line.format for line in each}) > 1 or {line.byte_offset for line in each} - {0, first.byte_offset}:
            raise RecordRejected(
                "bad-format", f"{header_file}: the leads of {name} are said to be stored in several ways"
            )
        frame = sum([line.samples_per_frame for line in each])
        files.append(_File(beside(header_file.parent, name), tuple(inside), first.format, first.byte_offset, frame))
    return files


def _read(header: WfdbHeader, file: _File) -> tuple[list[np.ndarray], tuple[int, int, int] | None, bool]:
    """The counts of each lead of a file, in whole frames and in the order of the file: those of the record, and those
    behind them that a skewed lead takes. And, when the file holds more for no reason known, its bytes, those that the
    header announces, and those before the first sample; and whether a MATLAB matrix has more than the header says."""
    lines = [header.signals[k] for k in file.leads]
    compressed = file.format in formats.FLAC
    if header.samples is None or compressed:
        needed = None
    else:
        needed = file.offset + formats.bytes_of(file.format, header.samples * file.frame)
    data, size = signal_bytes(file.path, needed)
    if compressed:
        return _from_flac(header, file, data), None, False
    found = matrix(data, size, file.path, header, len(lines), file.offset)
    if found is not None:
        if file.frame != len(lines):
            raise RecordRejected("bad-format", f"{file.path}: a MATLAB matrix has no frames of several samples")
        return list(found[0]), None, found[1]
    kind = other_kind(data, file.format, file.offset)
    if kind and not (header.checksums and size == needed):
        raise _foreign(file, kind)
    if needed is not None and size < needed:
        raise RecordRejected(
            "truncated-signal",
            f"{file.path}: {size} bytes, expected {needed} ({len(lines)} leads x {header.samples} samples)",
        )
    frames = formats.samples_in(file.format, size - file.offset) // file.frame
    if header.samples is not None:
        frames = min(frames, header.samples + max([line.skew for line in lines]))
    if not frames:
        raise RecordRejected("no-signal", f"{file.path}: {size} bytes hold no sample of {len(lines)} leads")
    numbers = formats.decode(file.format, data, file.offset, frames * file.frame)
    rows = _rows(numbers.reshape(frames, file.frame), header, file.leads)
    if kind and differing(header, file.leads, rows):
        raise _foreign(file, kind)
    held = file.offset + formats.bytes_of(file.format, frames * file.frame)
    frame = formats.bytes_of(file.format, file.frame)
    if needed is not None and holds_more(data, size, held, frame):
        return rows, (size, needed, file.offset), False
    return rows, None, False


def _foreign(file: _File, kind: str) -> RecordRejected:
    return RecordRejected("bad-format", f"{file.path}: {kind}; its header says counts in format {file.format}")


def _from_flac(header: WfdbHeader, file: _File, data: bytes) -> list[np.ndarray]:
    each = {header.signals[k].samples_per_frame for k in file.leads}
    if len(each) > 1:
        raise RecordRejected("bad-format", f"{file.path}: the leads of a FLAC file have one number of samples a frame")
    (per_frame,) = each
    skew = max([header.signals[k].skew for k in file.leads])
    most = None if header.samples is None else (header.samples + skew) * per_frame
    values = formats.decode_flac(data, file.path, file.format, len(file.leads), file.offset, most)
    if header.samples is not None and len(values) < header.samples * per_frame:
        raise RecordRejected(
            "truncated-signal", f"{file.path}: {len(values)} samples, expected {header.samples * per_frame}"
        )
    values = values[: len(values) // per_frame * per_frame]
    if file.format in _OF_16_BITS:
        values = values.astype(np.int16)
    return list(np.ascontiguousarray(values.T))


def _rows(frames: np.ndarray, header: WfdbHeader, leads: Sequence[int]) -> list[np.ndarray]:
    """(frames, samples of all leads) -> the samples of each lead, in their order in time."""
    lines = [header.signals[k] for k in leads]
    if frames.shape[1] == len(lines):
        rows = list(np.ascontiguousarray(frames.T))
    else:
        ends = np.cumsum([line.samples_per_frame for line in lines])
        rows = [part.reshape(-1) for part in np.split(frames, ends[:-1], axis=1)]
    if lines[0].format != formats.DIFFERENCES:
        return rows
    firsts = [header.initials[k] for k in leads]
    starts = [line.adc_zero if first is None else first for first, line in zip(firsts, lines, strict=True)]
    return [row.cumsum(dtype=np.int64) + start for row, start in zip(rows, starts, strict=True)]


def _values(row: np.ndarray, line: SignalLine, frames: int) -> np.ndarray:
    """float64 of so many frames, NaN where the lead has no value; a skewed lead begins later in the file."""
    length, skip = frames * line.samples_per_frame, line.skew * line.samples_per_frame
    values = np.full(length, np.nan)
    kept = row[skip : skip + length]
    values[: len(kept)] = kept
    lowest = formats.no_value(line.format)
    if lowest is not None:
        values[values == lowest] = np.nan
    return values


def _at_rate(values: np.ndarray, has: int, wanted: int, filtered: bool) -> np.ndarray:
    """A lead of `has` samples per frame at `wanted` ones; whole counts, NaN where the lead had no value."""
    if has == wanted:
        return values
    last = np.arange(len(values) // has * wanted) * has // wanted
    invalid = np.isnan(values)
    if not filtered or invalid.all():
        return values[last]
    places = np.arange(len(values))
    filled = np.interp(places, places[~invalid], values[~invalid])
    raised = np.rint(polyphase(filled[None], wanted, has)[0])
    raised[invalid[last]] = np.nan
    return raised
