"""Multi-segment records: segments of one record, each with a header of its own, joined by the names of their leads.

In the fixed layout the first segment names the leads, in the variable one a layout header without samples. Each
segment's own unit, gain and baseline hold for its samples. What it does not fit in, its rate and its length, is judged
against the record line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.wfdb import formats
from cardialign.data_shards.reading.wfdb.files import beside
from cardialign.data_shards.reading.wfdb.header import DEFAULT_GAIN, SignalLine, WfdbHeader, read_header
from cardialign.data_shards.reading.wfdb.leads import plain_name
from cardialign.data_shards.reading.wfdb.samples import INVALID_16, Samples, read_samples, samples_per_frame

_WHOLE_WITHIN = 1e-3
"""Counts by which a converted sample may miss a whole one."""
NULL = "~"
"""The name of a segment that was not recorded."""


@dataclass(frozen=True)
class Joined:
    """samples: rows are float64 (L, T) counts of the gains in `lines`, baseline subtracted, NaN = no value."""

    lines: tuple[SignalLine, ...]
    samples: Samples
    per_frame: int
    comments: tuple[str, ...]


@dataclass(frozen=True)
class _Segment:
    file: Path
    header: WfdbHeader
    start: int
    """Frames of the record before it."""
    leads: tuple[int, ...]
    """Position of each of its leads among those of the record."""


def read_segments(header: WfdbHeader, header_file: Path) -> Joined:
    """Raises RecordRejected: as `read_samples` does, and bad-format for a segment that does not fit the record."""
    listed = list(header.segments)
    total = sum(frames for _, frames in listed)
    if header.samples is not None and header.samples != total:
        raise RecordRejected(
            "bad-format",
            f"{header_file}: the record line announces {header.samples} samples, its segments have {total}",
        )
    layout = _header(header_file, listed[0][0]) if listed[0][1] == 0 and listed[0][0] != NULL else None
    if layout is not None:
        _fits(layout[1], layout[0], header, None)
        listed = listed[1:]
    found = [(name, frames, None if name == NULL else _header(header_file, name)) for name, frames in listed]
    first = layout or next((each for _, _, each in found if each is not None), None)
    if first is None:
        raise RecordRejected("no-signal", f"{header_file}: none of its segments was recorded")
    names = [line.name for line in first[1].signals]
    if len(names) != header.signal_count:
        raise RecordRejected(
            "bad-format", f"{header_file}: {header.signal_count} signals are announced, {first[0]} has {len(names)}"
        )
    segments: list[_Segment] = []
    start = 0
    for _, frames, each in found:
        if each is not None:
            _fits(each[1], each[0], header, frames)
            places = _places(names, each[1], each[0], whole=layout is None)
            segments.append(_Segment(each[0], replace(each[1], samples=frames), start, places))
        start += frames
    comments = header.comments or first[1].comments
    return _join(segments, total, first[1].signals, header_file, comments)


def _header(header_file: Path, name: str) -> tuple[Path, WfdbHeader]:
    """Where a segment's header lies, and the header. Raises RecordRejected."""
    file = Path(beside(header_file.parent, name, ".hea"))
    header = read_header(file)
    if header.segments:
        raise RecordRejected("bad-format", f"{header_file}: its segment {name!r} has segments of its own")
    return file, header


def _fits(segment: WfdbHeader, file: Path, record: WfdbHeader, frames: int | None) -> None:
    """Raises RecordRejected("bad-format") for a segment of another rate or length than the record says."""
    if not math.isclose(segment.frame_rate, record.frame_rate, rel_tol=1e-6):
        raise RecordRejected(
            "bad-format", f"{file}: a segment at {segment.frame_rate:g} Hz of a record at {record.frame_rate:g} Hz"
        )
    if frames is not None and segment.samples is not None and segment.samples != frames:
        raise RecordRejected(
            "bad-format", f"{file}: a segment of {segment.samples} samples, of which the record says {frames}"
        )


def _places(names: Sequence[str], segment: WfdbHeader, file: Path, whole: bool) -> tuple[int, ...]:
    """Position of each lead of a segment among those of the record; whole: the segment has all of them.

    Raises RecordRejected("bad-format") when a name is missing, unknown or not the only one.
    """
    own = [line.name for line in segment.signals]
    if own == list(names):
        return tuple(range(len(own)))
    known, wanted = [plain_name(name) for name in names], [plain_name(name) for name in own]
    for name, word in zip(own, wanted, strict=True):
        if known.count(word) != 1 or wanted.count(word) != 1:
            raise RecordRejected(
                "bad-format",
                f"{file}: the segment's lead {name!r} is not one lead of the record, which has {', '.join(names)}",
            )
    if whole and len(own) != len(names):
        raise RecordRejected("bad-format", f"{file}: a segment of the leads {', '.join(own)} of {', '.join(names)}")
    return tuple([known.index(word) for word in wanted])


def _join(
    segments: Sequence[_Segment],
    frames: int,
    layout: Sequence[SignalLine],
    header_file: Path,
    comments: tuple[str, ...],
) -> Joined:
    per_frame = max([samples_per_frame(segment.header.signals) for segment in segments], default=1)
    lines = list(layout)
    seen: set[int] = set()
    backed = 0
    for segment in segments:
        backed += segment.header.samples * len(segment.leads) * per_frame if segment.header.samples else 0
        for place, line in zip(segment.leads, segment.header.signals, strict=True):
            if place not in seen:
                lines[place] = replace(line, name=layout[place].name)
                seen.add(place)
    for place in set(range(len(lines))) - seen:  # what a layout says of a lead that was never recorded is of no use
        lines[place] = replace(lines[place], gain=DEFAULT_GAIN, baseline=0, units="mV")
    formats.check_claim(frames * per_frame * len(lines), backed, str(header_file))
    rows = np.full((len(lines), frames * per_frame), np.nan)
    wrong: set[int] = set()
    raised: set[int] = set()
    surplus = False
    finest = [line.counts_per_millivolt(str(header_file)) for line in lines]
    for segment in segments:
        if not segment.header.samples:
            continue
        part = read_samples(segment.header, segment.file, per_frame)
        at = slice(segment.start * per_frame, (segment.start + segment.header.samples) * per_frame)
        for place, line, row in zip(segment.leads, segment.header.signals, part.rows, strict=True):
            counts = row.astype(np.float64)
            if row.dtype == np.int16:
                counts[row == INVALID_16] = np.nan
            counts -= line.baseline
            own = line.counts_per_millivolt(str(segment.file))
            common = lines[place].counts_per_millivolt(str(segment.file))
            rows[place, at] = counts if own == common else counts * (common / own)
            finest[place] = max(finest[place], own)
        wrong |= {segment.leads[k] for k in part.wrong}
        raised |= {segment.leads[k] for k in part.raised}
        surplus |= part.surplus
    for place, line in enumerate(lines):
        common = line.counts_per_millivolt(str(header_file))
        off = np.abs(rows[place] - np.rint(rows[place]))
        if finest[place] > common and np.nanmax(off, initial=0) > _WHOLE_WITHIN:  # else the first gain holds them all
            rows[place] *= finest[place] / common
            lines[place] = replace(line, gain=line.gain * (finest[place] / common))
    samples = Samples(rows, tuple(sorted(wrong)), surplus, tuple(sorted(raised)))
    return Joined(tuple(lines), samples, per_frame, comments)
