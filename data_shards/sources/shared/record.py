"""The way from a signal, however it was read, to an `EcgRecord`: leads in their order, quality assessed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.wfdb.header import RATE_RANGE
from cardialign.data_shards.reading.wfdb.reader import WfdbSignal, read_wfdb, standard_leads
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.signal import quality


def read_ecg(path: Path, key: str, *, source: str, extra: Mapping[str, Any] | None = None, **fields: Any) -> EcgRecord:
    """Read, reorder and assess the WFDB record at `path` (no suffix); `fields` go to the EcgRecord as they are.

    Raises RecordRejected as `read_wfdb` and `standard_leads` do, and "no-signal" when no lead holds a signal.
    """
    return assemble(read_wfdb(path), str(path), key, source=source, extra=extra, **fields)


def record_path(path: str) -> str:
    """The record that a published table means by `path`, which some copies give with a suffix or by the rules of
    Windows."""
    return path.strip().replace("\\", "/").removesuffix(".hea").removesuffix(".dat")


def assemble(
    signal: WfdbSignal, where: str, key: str, *, source: str, extra: Mapping[str, Any] | None = None, **fields: Any
) -> EcgRecord:
    """A signal, however it was read, as the EcgRecord `key`: leads reordered, quality assessed.

    `where` names the record in errors.

    Raises RecordRejected as `standard_leads` does, "bad-format" for a sampling rate outside 10 Hz to 100 kHz, and
    "no-signal" when no lead holds a signal.
    """
    if not RATE_RANGE[0] <= signal.sampling_rate <= RATE_RANGE[1]:  # false for NaN too
        raise RecordRejected("bad-format", f"{where}: a sampling rate of {signal.sampling_rate:g} Hz is that of no ECG")
    leads = standard_leads(signal, where)
    flags = quality.merge(leads.flags, quality.assess(leads.counts, leads.gain, leads.lead_mask, signal.sampling_rate))
    lead_mask = quality.usable(leads.lead_mask, flags)
    if not lead_mask.any():
        recorded = int(np.count_nonzero(leads.lead_mask))
        raise RecordRejected("no-signal", f"{where}: all {recorded} recorded leads are flat or without values")
    notes = {**signal.notes, **(extra or {})}
    if leads.other_channels:
        notes["other_channels"] = list(leads.other_channels)
    return EcgRecord(
        key=key,
        counts=leads.counts,
        gain=leads.gain,
        sampling_rate=signal.sampling_rate,
        lead_mask=lead_mask,
        quality=flags,
        source=source,
        extra=notes,
        **fields,
    )
