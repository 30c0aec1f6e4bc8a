"""WFDB records of three leads whose header declares what a test wants, and what reading them gives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import wfdb

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.wfdb.reader import WfdbSignal, read_wfdb
from tests.support.wfdb_files import ecg_counts

LEADS = ("I", "II", "V1")
COUNTS = ecg_counts(600, leads=3, gain=1000).astype(np.int64)


def write(
    folder: Path,
    raw: bytes | np.ndarray,
    storage: str | Sequence[str] = "16",
    *,
    name: str = "r",
    line: str = "",
    leads: Sequence[str] = LEADS,
    gain: str | Sequence[str] = "1000(0)/mV",
    checks: Sequence[tuple[int, int]] = (),
    file: str = "",
) -> Path:
    """A header with one line per lead, and its signal file: bytes, or counts (L, T) as format 16. checks: first value
    and checksum of each lead."""
    samples = raw.shape[1] if isinstance(raw, np.ndarray) else 600
    lines = [line or f"{name} {len(leads)} 500 {samples}"]
    for k, lead in enumerate(leads):
        how, scale = (value if isinstance(value, str) else value[k] for value in (storage, gain))
        first, total = checks[k] if checks else (0, 0)
        lines.append(f"{file or name + '.dat'} {how} {scale} 16 0 {first} {total} 0 {lead}")
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")
    data = raw if isinstance(raw, bytes) else raw.T.astype("<i2").tobytes()
    (folder / os.path.basename(file or f"{name}.dat")).write_bytes(data)
    return folder / name


def millivolts(signal: WfdbSignal) -> np.ndarray:
    return signal.counts / signal.gain[:, None]


def refused(path: Path) -> str:
    with pytest.raises(RecordRejected) as caught:
        read_wfdb(path)
    return str(caught.value)


def wrsamp(folder: Path, storage: str, **signal: np.ndarray) -> Path:
    """What `wfdb.wrsamp` writes: gain, baseline, first values and checksums are its own."""
    known = {} if "p_signal" in signal else {"adc_gain": [1000.0] * 3, "baseline": [0] * 3}
    wfdb.wrsamp(
        "r", fs=500, units=["mV"] * 3, sig_name=list(LEADS), fmt=[storage] * 3, write_dir=str(folder), **known, **signal
    )
    return folder / "r"


def segment(folder: Path, name: str, counts: np.ndarray, rate: str = "500", **how: object) -> None:
    leads = how.get("leads", LEADS)
    write(folder, counts, name=name, line=f"{name} {len(leads)} {rate} {counts.shape[1]}", **how)  # type: ignore[arg-type]


def record(folder: Path, *lines: str, name: str = "m") -> Path:
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n# Age: 60\n")
    return folder / name


def packed_212(samples: np.ndarray) -> bytes:
    first, second = samples.reshape(-1, 2).T & 0xFFF
    return np.stack([first & 0xFF, first >> 8 | second >> 8 << 4, second & 0xFF], axis=1).astype("u1").tobytes()
