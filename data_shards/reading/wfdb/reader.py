"""WFDB records as integer counts, whatever their form: one door for all that reads a recording.

It decodes by what the header and the files declare, compares with what the record declares, and refuses what does not
fit. Tests hold every form equal to the `wfdb` package. Format 16 in one file (MIMIC-IV-ECG, PTB-XL, CODE-15%, and with
a byte offset the .mat files of the PhysioNet Challenges) is one read and one transposition.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.wfdb.header import RATE_RANGE, SignalLine, WfdbHeader, read_header
from cardialign.data_shards.reading.wfdb.leads import rows_of
from cardialign.data_shards.reading.wfdb.samples import INVALID_16, Samples, read_samples, samples_per_frame
from cardialign.data_shards.reading.wfdb.segments import read_segments
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.signal.sixteen_bits import coarse, counts_per_step, in_steps


@dataclass(frozen=True)
class WfdbSignal:
    """A record as stored. counts int16 (L, T) with the baseline already subtracted, so mV = counts / gain; gain float64
    (L,) counts per mV; baseline int64 (L,) as the header gives it; sampling_rate in Hz; flags: quality flag ->
    positions of the leads concerned ("non-finite": samples without a value, set to 0; "checksum": not those of the
    header; "surplus": the file holds more than it announces; "coarse": counts that needed more than 16 bits, in steps
    of more than 2 uV); notes: what else is worth keeping with the record."""

    counts: np.ndarray
    gain: np.ndarray
    baseline: np.ndarray
    lead_names: tuple[str, ...]
    sampling_rate: float
    comments: tuple[str, ...] = ()
    flags: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


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

    Raises RecordRejected, and nothing else for whatever the files hold: missing-file, unreadable-header,
    truncated-signal, bad-gain, no-signal, bad-format, outside-root.
    """
    try:
        return _read(Path(path))
    except RecordRejected:
        raise
    except MemoryError:
        raise RecordRejected("bad-format", f"{path}: the record takes more memory than there is") from None
    except Exception as error:  # whatever a file can cause is the end of this record, never of a build
        raise RecordRejected("bad-format", f"{path}: cannot be read: {type(error).__name__}: {error}") from error


def _read(path: Path) -> WfdbSignal:
    header_file = path.with_name(path.name + ".hea")
    header = read_header(header_file)
    if header.signal_count == 0:
        raise RecordRejected("no-signal", f"{header_file}: the header announces no signal")
    if header.segments:
        joined = read_segments(header, header_file)
        rate = _rate(header, joined.per_frame, header_file)
        gain = _gains(joined.lines, header_file)
        return _signal(joined.samples, joined.lines, gain, rate, joined.comments, subtract=False)
    per_frame = samples_per_frame(header.signals)
    rate = _rate(header, per_frame, header_file)
    gain = _gains(header.signals, header_file)  # a header that is wrong is named before its files are read
    samples = read_samples(header, header_file, per_frame)
    return _signal(samples, header.signals, gain, rate, header.comments, subtract=True)


def _rate(header: WfdbHeader, per_frame: int, header_file: Path) -> float:
    rate = header.frame_rate * per_frame
    if not RATE_RANGE[0] <= rate <= RATE_RANGE[1]:
        raise RecordRejected("unreadable-header", f"{header_file}: a sampling rate of {rate:g} Hz is that of no ECG")
    return rate


def _gains(lines: tuple[SignalLine, ...], header_file: Path) -> np.ndarray:
    where = str(header_file)
    return np.array([line.counts_per_millivolt(where) for line in lines])


def _signal(
    samples: Samples,
    lines: tuple[SignalLine, ...],
    gain: np.ndarray,
    rate: float,
    comments: tuple[str, ...],
    *,
    subtract: bool,
) -> WfdbSignal:
    """Counts as stored, their baseline subtracted unless it is, within 16 bits, no "no value" left in them."""
    baseline = np.array([line.baseline for line in lines], dtype=np.int64)
    counts, invalid, steps = _within_16_bits(samples.rows, baseline if subtract else np.zeros_like(baseline), gain)
    concerned = {
        "checksum": samples.wrong,
        "surplus": tuple(range(len(lines))) if samples.surplus else (),
        "non-finite": () if invalid is None else tuple(np.flatnonzero(invalid.any(axis=1)).tolist()),
        "coarse": coarse(steps, gain),
    }
    notes: dict[str, Any] = {}
    if samples.raised:
        notes["raised_to_the_rate_of_other_leads"] = [lines[k].name for k in samples.raised]
    return WfdbSignal(
        counts,
        gain / steps,
        baseline,
        tuple(line.name for line in lines),
        rate,
        comments,
        {flag: leads for flag, leads in concerned.items() if leads},
        notes,
    )


def _within_16_bits(
    rows: np.ndarray, baseline: np.ndarray, gain: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """int16 (L, T) without the baseline and with 0 for "no value", bool (L, T) where that was (None: nowhere), and
    float64 (L,) how many counts of the file one of these is."""
    if rows.dtype == np.int16:
        invalid = rows == INVALID_16 if (rows.min(axis=1) == INVALID_16).any() else None
        if not baseline.any():
            return rows if invalid is None else np.where(invalid, np.int16(0), rows), invalid, np.ones(len(rows))
        wide = rows.astype(np.int64) - baseline[:, None]
    else:
        missing = np.isnan(rows)
        invalid = missing if missing.any() else None
        wide = rows - baseline[:, None]
    if invalid is not None:
        wide[invalid] = 0
    steps = counts_per_step(wide, gain)
    return in_steps(wide, steps), invalid, steps


def _turned(signal: WfdbSignal, leads: np.ndarray) -> WfdbSignal:
    """The signal with these leads inverted; the lowest of 16 bits has no opposite, its lead takes coarser steps."""
    counts, gain = signal.counts.copy(), signal.gain.copy()
    wide = -counts[leads].astype(np.float64)
    steps = counts_per_step(wide, gain[leads])
    counts[leads], gain[leads] = in_steps(wide, steps), gain[leads] / steps
    return replace(signal, counts=counts, gain=gain)


def standard_leads(signal: WfdbSignal, where: str) -> StandardLeads:
    """Reorder by lead name, case-insensitively (`leads.rows_of`); an inverted lead is turned back.

    A lead that the file lacks is all zero and False in the mask; `where` names the record in errors.

    Raises RecordRejected("unknown-leads") when no name is a standard lead, or one occurs twice.
    """
    rows, inverted = rows_of(signal.lead_names)
    known = [row for row in rows if row >= 0]
    if not known:
        raise RecordRejected(
            "unknown-leads",
            f"{where}: leads {', '.join(map(repr, signal.lead_names))}, expected names such as "
            f"{', '.join(STANDARD_LEADS)}; where one is a standard lead under another name, correct the file, or build "
            f"shards with --lead-names {shlex.quote(f'{signal.lead_names[0].strip()}=I')} (with the lead that it is)",
        )
    if len(set(known)) < len(known):
        twice = next(STANDARD_LEADS[row] for row in known if known.count(row) > 1)
        raise RecordRejected(
            "unknown-leads", f"{where}: lead {twice!r} occurs more than once among {', '.join(signal.lead_names)}"
        )
    if any(inverted):
        signal = _turned(signal, np.flatnonzero(inverted))
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
