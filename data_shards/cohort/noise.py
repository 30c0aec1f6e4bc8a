"""What a real recording adds to the heart: wander, muscle, mains, motion at the electrodes, and the faults of about 6 %
of records.

Noise arises at the nine electrodes and reaches the leads through their differences, so Einthoven's law holds for it
too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cardialign.data_shards.cohort.dipole import twelve_leads

FAULT_SHARE = 0.06
"""Share of records with a flat, partly flat or clipped lead (6.7 % in MIMIC-IV-ECG)."""

_THIRD = -1.0 / 3.0
# rows: I, II, V1 to V6; columns: the electrodes RA, LA, LL, V1 to V6
_ELECTRODES_TO_LEADS = np.zeros((8, 9), dtype=np.float32)
_ELECTRODES_TO_LEADS[0, [0, 1]] = (-1, 1)
_ELECTRODES_TO_LEADS[1, [0, 2]] = (-1, 1)
_ELECTRODES_TO_LEADS[2:, :3] = _THIRD  # chest leads are measured against Wilson's central terminal
_ELECTRODES_TO_LEADS[np.arange(2, 8), np.arange(3, 9)] = 1


@dataclass(frozen=True)
class Fault:
    """`kind` "flat", "dropout" or "clipped"; the leads concerned by their standard names; first and last sample."""

    kind: str
    leads: tuple[str, ...]
    start: int
    stop: int


@lru_cache(maxsize=8)
def _wander_basis(samples: int, sampling_rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Slow waves (2H, T) float32 between 0.05 and 0.7 Hz, and their usual amplitudes (2H,), falling with frequency."""
    frequency = np.array([0.05, 0.09, 0.15, 0.21, 0.28, 0.36, 0.47, 0.66])
    angle = 2 * np.pi * frequency[:, None] * np.arange(samples) / sampling_rate
    basis = np.concatenate([np.sin(angle), np.cos(angle)]).astype(np.float32)
    return basis, np.tile(1 / (1 + (frequency / 0.2) ** 1.5), 2).astype(np.float32)


def electrode_noise(samples: int, sampling_rate: float, mains_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of one record in the eight measured leads, float32 (8, T), mV."""
    basis, usual = _wander_basis(samples, sampling_rate)
    size = np.float32(0.02 * np.exp(0.7 * rng.standard_normal()))
    weights = size * usual * rng.standard_normal((9, basis.shape[0]), dtype=np.float32)
    noise = weights @ basis
    noise += _muscle(samples, rng)
    times = np.arange(samples, dtype=np.float32) / np.float32(sampling_rate)
    if sampling_rate > 2 * mains_hz:
        hum = np.float32(0.004 * np.exp(0.8 * rng.standard_normal()))
        phase = 2 * np.pi * mains_hz * times
        mains = hum * rng.standard_normal((9, 2), dtype=np.float32)
        noise += mains @ np.stack([np.sin(phase), np.cos(phase)])
    if rng.random() < 0.12:
        _motion(noise, times, sampling_rate, rng)
    return np.asarray(_ELECTRODES_TO_LEADS @ noise)


def _muscle(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Muscle noise (9, T): white noise with the lowest frequencies differenced away; some records tremble, a few in
    bursts."""
    white = rng.standard_normal((9, samples + 1), dtype=np.float32)
    size = 0.0035 * np.exp(0.55 * rng.standard_normal())
    if rng.random() < 0.08:
        size *= 3.0
    shaped = white[:, 1:] - np.float32(0.6) * white[:, :-1]
    shaped *= (size * np.exp(0.3 * rng.standard_normal((9, 1)))).astype(np.float32)
    if rng.random() < 0.1:
        start, length = int(rng.integers(0, samples)), int(samples * rng.uniform(0.05, 0.25))
        shaped[:, start : start + length] *= np.float32(rng.uniform(2, 4))
    return shaped


def _motion(noise: np.ndarray, times: np.ndarray, sampling_rate: float, rng: np.random.Generator) -> None:
    """A loose electrode: one or two jumps that creep back."""
    electrode = int(rng.integers(0, 9))
    for _ in range(int(rng.integers(1, 3))):
        start = int(rng.integers(0, len(times) - 10))
        jump = rng.uniform(0.15, 0.7) * rng.choice([-1, 1])
        noise[electrode, start:] += (jump * np.exp(-(times[start:] - times[start]) / rng.uniform(0.15, 0.8))).astype(
            np.float32
        )


def draw_fault(samples: int, rng: np.random.Generator) -> Fault | None:
    """The fault of one record, or None for the 94 % without."""
    if rng.random() >= FAULT_SHARE:
        return None
    kind = ("flat", "dropout", "clipped")[int(rng.choice(3, p=(0.4, 0.35, 0.25)))]
    leads: tuple[str, ...] = (f"V{int(rng.integers(1, 7))}",)
    if kind == "flat" and rng.random() < 0.15:
        leads = ("I",)
    start, stop = 0, samples
    if kind == "dropout":
        length = int(samples * rng.uniform(0.15, 0.6))
        start = int(rng.integers(0, samples - length))
        stop = start + length
    return Fault(kind, leads, start, stop)


def digitise(eight: np.ndarray, gain: float, fault: Fault | None) -> np.ndarray:
    """Counts int16 (12, T) in standard order from mV (8, T) at `gain` counts per mV, with the record's fault."""
    counts = np.rint(eight * np.float32(gain)).astype(np.int32)
    np.clip(counts, -16000, 16000, out=counts)  # twice lead I must still fit into int16 in the derived leads
    if fault is not None:
        row = 0 if fault.leads[0] == "I" else int(fault.leads[0][1]) + 1
        part = counts[row, fault.start : fault.stop]
        if fault.kind == "clipped":
            level = max(int(0.45 * np.abs(part).max()), 1)
            np.clip(part, -level, level, out=part)
        else:
            part[:] = 0
    return twelve_leads(counts)
