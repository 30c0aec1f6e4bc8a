"""Where the waves are: beats of a recording, the intervals and amplitudes of its usual beat.

All leads speak together. Beats are found in the spatial velocity, in the band of the QRS (as Pan & Tompkins 1985 for
one lead); the usual beat is the median of the beats that look alike; its waves are bounded in the size and the velocity
of the heart's vector over the leads. Nothing here is trained. Meant for features, pictures and words about intervals,
not for a diagnosis.
Legend: L leads, T samples, n beats.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.signal import butter, find_peaks, sosfiltfilt

QRS_BAND, WAVE_BAND = (6.0, 24.0), (0.4, 40.0)
REFRACTORY_SECONDS = 0.22
BEFORE, AFTER = 0.36, 0.56
"""Seconds of the usual beat around its R peak."""
ALIKE = 0.85
"""Correlation with the usual beat above which a beat is one of its kind."""
LEAST_ENERGY = 0.12
"""Share of the usual energy of a QRS that a beat has at least: a wide ectopic beat is slow."""
EDGE_SECONDS = 0.06
"""A peak nearer to an end of the recording may be the T wave of a beat that is not there."""
SMALLEST = 0.25
"""Share of the height of large beats that a beat has at least."""
SHORTEST_SECONDS = 1.5


@dataclass(frozen=True)
class UsualBeat:
    """leads float64 (L, N) mV, zero at the level before the QRS; times in seconds from its start, NaN where there is no
    such wave: p_onset, p_peak, p_end, qrs_onset, r_peak, qrs_end, t_peak, t_end."""

    leads: np.ndarray
    sampling_rate: float
    times: dict[str, float]

    def milliseconds(self, start: str, end: str) -> float:
        """From one of `times` to another, NaN when one is missing: ("p_onset", "qrs_onset") is the PR interval."""
        return 1000.0 * (self.times[end] - self.times[start])

    def at(self, seconds: float) -> np.ndarray:
        """(L,) mV at a time, NaN outside."""
        place = round(seconds * self.sampling_rate) if np.isfinite(seconds) else -1
        return self.leads[:, place] if 0 <= place < self.leads.shape[1] else np.full(len(self.leads), np.nan)


@dataclass(frozen=True)
class Delineation:
    """peaks int64 (n,): samples of the R peaks; likeness float64 (n,): correlation of each beat with the usual one;
    usual: None when no beat lies whole in the recording."""

    peaks: np.ndarray
    likeness: np.ndarray
    usual: UsualBeat | None
    sampling_rate: float

    @property
    def rr_seconds(self) -> np.ndarray:
        """(n - 1,): from each beat to the next."""
        return np.diff(self.peaks) / self.sampling_rate


def delineate(signal: np.ndarray, sampling_rate: float) -> Delineation:
    """signal (L, T) mV of recorded leads alone, sampling_rate in Hz (at least 60).

    Too short a signal, a flat one and one without leads have no beats. Raises ValueError for a lower rate.
    """
    if sampling_rate < 60:
        raise ValueError(f"{sampling_rate:g} Hz is too low to tell waves apart; give at least 60 Hz")
    signal = np.asarray(signal, dtype=np.float64)
    none = Delineation(np.zeros(0, dtype=np.int64), np.zeros(0), None, sampling_rate)
    if not signal.size or signal.shape[1] < SHORTEST_SECONDS * sampling_rate:
        return none
    waves = sosfiltfilt(_band(*WAVE_BAND, sampling_rate), signal, axis=1)
    peaks = _large(_beats(signal, sampling_rate), waves, sampling_rate)
    if not peaks.size:
        return none
    before, after = round(BEFORE * sampling_rate), round(AFTER * sampling_rate)
    whole = (peaks >= before) & (peaks + after < signal.shape[1])
    if not whole.any():
        return Delineation(peaks, np.full(len(peaks), np.nan), None, sampling_rate)
    pieces = np.stack([waves[:, p - before : p + after] for p in peaks[whole]])  # (n', L, N)
    usual, likeness = _usual(pieces, before, sampling_rate)
    found = np.full(len(peaks), np.nan)
    found[whole] = likeness
    return Delineation(peaks, found, _bounded(usual, before, sampling_rate, peaks), sampling_rate)


@lru_cache(maxsize=16)
def _band(low: float, high: float, sampling_rate: float) -> np.ndarray:
    return butter(2, (low, min(high, 0.45 * sampling_rate)), "bandpass", fs=sampling_rate, output="sos")


def _smooth(rows: np.ndarray, samples: int) -> np.ndarray:
    """Moving average along the last axis, of the same length."""
    width = max(1, samples)
    kernel = np.ones(width) / width
    return np.apply_along_axis(lambda row: np.convolve(row, kernel, "same"), -1, rows)


def _beats(signal: np.ndarray, rate: float) -> np.ndarray:
    """Samples of the R peaks, ascending."""
    qrs = sosfiltfilt(_band(*QRS_BAND, rate), signal, axis=1)
    scale = np.median(np.abs(qrs), axis=1, keepdims=True)
    living = scale[:, 0] > 1e-6
    if not living.any():
        return np.zeros(0, dtype=np.int64)
    qrs = qrs[living]
    strong = np.quantile(np.abs(qrs), 0.99, axis=1, keepdims=True)
    energy = np.square(np.diff(qrs / strong, axis=1, prepend=qrs[:, :1] / strong)).mean(axis=0)
    energy = _smooth(energy[None], round(0.1 * rate))[0]
    # The height of a beat's energy: the usual maximum of stretches that hold at least one beat at 25 per minute.
    stretch = max(1, round(2.5 * rate))
    maxima = [energy[at : at + stretch].max() for at in range(0, max(1, len(energy) - stretch // 2), stretch)]
    height = float(np.median(maxima))
    places, _ = find_peaks(energy, height=LEAST_ENERGY * height, distance=max(1, round(REFRACTORY_SECONDS * rate)))
    places = _without_t_waves(places, energy, rate)
    size = np.sqrt(np.square(qrs).mean(axis=0))
    reach = round(0.07 * rate)
    found = [max(0, p - reach) + int(np.argmax(size[max(0, p - reach) : p + reach + 1])) for p in places]
    edge = EDGE_SECONDS * rate
    return np.unique([p for p in found if edge <= p < signal.shape[1] - edge]).astype(np.int64)


def _without_t_waves(places: np.ndarray, energy: np.ndarray, rate: float) -> np.ndarray:
    """A steep T wave follows its QRS within 0.36 s and has less than half of its energy."""
    kept: list[int] = []
    for place in places:
        if kept and place - kept[-1] < 0.36 * rate:
            if energy[place] < 0.5 * energy[kept[-1]]:
                continue
            if energy[kept[-1]] < 0.5 * energy[place] and len(kept) > 1 and kept[-1] - kept[-2] < 0.36 * rate:
                kept.pop()
        kept.append(int(place))
    return np.asarray(kept, dtype=np.int64)


def _large(peaks: np.ndarray, waves: np.ndarray, rate: float) -> np.ndarray:
    """Without P waves that are steeper than a slow ventricular beat: they are small."""
    if not peaks.size:
        return peaks
    reach = round(0.08 * rate)
    height = np.array([np.ptp(waves[:, max(0, p - reach) : p + reach + 1], axis=1).mean() for p in peaks])
    return peaks[height > SMALLEST * np.quantile(height, 0.9)]


def _usual(pieces: np.ndarray, before: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """The median of the largest kind of beats (L, N), and the likeness of every beat (n,)."""
    around = slice(max(0, before - round(0.1 * rate)), before + round(0.14 * rate))
    flat = pieces[:, :, around].reshape(len(pieces), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(1e-9)
    alike = unit @ unit.T
    kind = alike[(alike > ALIKE).sum(axis=1).argmax()] > ALIKE
    usual = np.median(pieces[kind], axis=0)
    template = usual[:, around].ravel()
    template = template - template.mean()
    return usual, unit @ (template / max(float(np.linalg.norm(template)), 1e-9))


def _bounded(usual: np.ndarray, before: int, rate: float, peaks: np.ndarray) -> UsualBeat:
    """Bounds of the waves of the usual beat, found outwards from its R peak."""
    N = usual.shape[1]
    speed = np.sqrt(np.square(np.gradient(usual, axis=1) * rate).mean(axis=0))  # mV per second over the leads
    speed = _smooth(speed[None], round(0.012 * rate))[0]
    onset, end = _qrs(speed, before, rate)
    level = usual[:, max(0, onset - round(0.02 * rate)) : onset + 1].mean(axis=1, keepdims=True)
    leads = usual - level
    size = np.sqrt(np.square(leads).mean(axis=0))
    size = _smooth(size[None], round(0.02 * rate))[0]
    times = dict.fromkeys(("p_onset", "p_peak", "p_end", "t_peak", "t_end"), np.nan)
    times |= {"qrs_onset": onset / rate, "r_peak": before / rate, "qrs_end": end / rate}
    shortest = float(np.quantile(np.diff(peaks), 0.25)) if len(peaks) > 1 else 1e9
    last = int(min(N - 1, before + 0.75 * shortest))
    times |= _t_wave(leads, size, end, last, rate)
    first = int(max(0, before - 0.55 * shortest))
    times |= _p_wave(leads, first, onset, rate)
    return UsualBeat(leads, rate, times)


def _qrs(speed: np.ndarray, peak: int, rate: float) -> tuple[int, int]:
    """First and last sample of the QRS: where the vector is fast, and 20 ms of quiet before and after."""
    reach = slice(max(0, peak - round(0.06 * rate)), peak + round(0.06 * rate))
    quiet_level = np.quantile(speed, 0.2)
    limit = quiet_level + 0.08 * (speed[reach].max() - quiet_level)
    quiet = max(1, round(0.02 * rate))
    onset = peak
    while onset > 0 and speed[max(0, onset - quiet) : onset].max(initial=0.0) > limit and peak - onset < 0.12 * rate:
        onset -= 1
    end, last = peak, len(speed) - 1
    while end < last and speed[end + 1 : end + 1 + quiet].max(initial=0.0) > limit and end - peak < 0.16 * rate:
        end += 1
    return onset, end


def _t_wave(leads: np.ndarray, size: np.ndarray, qrs_end: int, last: int, rate: float) -> dict[str, float]:
    start = qrs_end + round(0.06 * rate)
    if last - start < 0.08 * rate:
        return {}
    peak = start + int(np.argmax(size[start:last]))
    slope = np.gradient(size)
    fall = slice(peak, min(last, peak + round(0.2 * rate)))
    if fall.stop - fall.start < 3:
        return {"t_peak": peak / rate}
    # Where the steepest tangent of the falling limb meets the level behind it (Lepeschkin & Surawicz 1952).
    steepest = fall.start + int(np.argmin(slope[fall]))
    if slope[steepest] >= 0:
        return {"t_peak": peak / rate}
    base = float(np.min(size[steepest : last + 1]))
    end = steepest + (size[steepest] - base) / -slope[steepest]
    return {"t_peak": peak / rate, "t_end": float(min(end, last)) / rate}


def _p_wave(leads: np.ndarray, first: int, onset: int, rate: float) -> dict[str, float]:
    """The largest bump before the QRS that stands out of its surroundings."""
    window = leads[:, first : max(first, onset - round(0.01 * rate))]
    if window.shape[1] < 0.08 * rate:
        return {}
    # A straight line from end to end is what a falling T wave or a slope of the baseline leaves.
    ramp = np.linspace(0, 1, window.shape[1])
    bent = window - (window[:, :1] * (1 - ramp) + window[:, -1:] * ramp)
    size = _smooth(np.sqrt(np.square(bent).mean(axis=0))[None], round(0.02 * rate))[0]
    peak = int(np.argmax(size))
    noise = float(np.median(np.abs(np.diff(window, n=2, axis=1)))) + 1e-4
    if size[peak] < max(0.012, 4 * noise) or not 0 < peak < len(size) - 1:
        return {}
    limit = 0.15 * size[peak]
    before, after = np.flatnonzero(size[:peak] < limit), np.flatnonzero(size[peak:] < limit)
    start = int(before[-1]) + 1 if before.size else 0
    stop = peak + int(after[0]) - 1 if after.size else len(size) - 1
    if not 0.03 * rate <= stop - start <= 0.2 * rate:
        return {"p_peak": (first + peak) / rate}
    return {name: (first + at) / rate for name, at in (("p_onset", start), ("p_peak", peak), ("p_end", stop))}
