"""WFDB files written by hand, so that tests control every byte of header and signal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cardialign.data_shards.record import STANDARD_LEADS

MIMIC_LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")


def ecg_counts(
    samples: int = 1000, leads: int = 12, seed: int = 0, rate: float = 500.0, gain: float = 200.0
) -> np.ndarray:
    """int16 (leads, samples): beats of one QRS a second on noise; every lead has its own amplitude, around 1 mV."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(samples) / rate
    beats = np.exp(-(((seconds + 0.5) % 1.0 - 0.5) ** 2) / (2 * 0.012**2))
    amplitude = np.linspace(0.6, 1.6, leads)[:, None]
    return np.rint(gain * (amplitude * beats + 0.02 * rng.standard_normal((leads, samples)))).astype(np.int16)


def write_record(
    path: Path,
    counts: np.ndarray,
    *,
    leads: Sequence[str] = STANDARD_LEADS,
    rate: str = "500",
    gains: Sequence[str] | str = "200.0(0)/mV",
    storage: str = "16",
    record_line: str | None = None,
    comments: Sequence[str] = (),
    prefix: bytes = b"",
    suffix: str = ".dat",
) -> Path:
    """Write `path`.hea and the interleaved int16 signal file; `gains` is the gain field, one for all leads or each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = [gains] * len(leads) if isinstance(gains, str) else list(gains)
    name = path.name
    lines = [record_line or f"{name} {len(leads)} {rate} {counts.shape[1]} 12:04:00 22/09/2182"]
    lines += [
        f"{name}{suffix} {storage} {gain} 16 0 {row[0]} 0 0 {lead}"
        for gain, row, lead in zip(fields, counts, leads, strict=True)
    ]
    lines += [f"# {comment}" for comment in comments]
    path.with_name(f"{name}.hea").write_text("\n".join(lines) + "\n")
    path.with_name(f"{name}{suffix}").write_bytes(prefix + np.ascontiguousarray(counts.T).astype("<i2").tobytes())
    return path
