"""What stands on a printed ECG in numbers: rate, intervals and axes of its usual beat, by `delineate`.

For pictures and pages, not for a diagnosis.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord
from cardialign.data_shards.signal.delineate import ALIKE, Delineation, UsualBeat, delineate

LEAST_RATE = 60.0
"""Hz below which `delineate` measures nothing."""
REPEATS = 10.0
"""Energy of the mean P wave over what beats that share none would leave of it by chance, from which there is one."""


class Measurements(NamedTuple):
    """rate: ventricular beats per minute, over the distance of the first and the last beat.

    pr, qrs, qt: milliseconds of the usual beat. qtc: QT for a rate of 60, by Fridericia (QT / RR^(1/3)).
    p_axis, qrs_axis, t_axis: degrees in the frontal plane, -179 to 180, of the areas of P, QRS and T in I and aVF.
    NaN where the recording does not show it: no two beats that look alike (noise), no P wave that comes again before
    every beat (fibrillation), a lead that is not there. Flutter waves at a fixed place pass for P waves.
    """

    rate: float = np.nan
    pr: float = np.nan
    qrs: float = np.nan
    qt: float = np.nan
    qtc: float = np.nan
    p_axis: float = np.nan
    qrs_axis: float = np.nan
    t_axis: float = np.nan


def measure(record: EcgRecord) -> Measurements:
    """Of the leads that are recorded; nothing of a record below 60 Hz."""
    if record.sampling_rate < LEAST_RATE or not record.lead_mask.any():
        return Measurements()
    signal = record.millivolts()[record.lead_mask, : record.valid_samples]
    found = delineate(signal, record.sampling_rate)
    rr = found.rr_seconds
    if np.sum(np.nan_to_num(found.likeness) > ALIKE) < 2:
        return Measurements()  # noise has peaks, too
    rate = 60.0 / float(rr.mean())
    usual = found.usual
    if usual is None:
        return Measurements(rate)
    if not _p_repeats(signal, found, usual):
        usual = replace(usual, times={**usual.times, "p_onset": np.nan, "p_peak": np.nan, "p_end": np.nan})
    qt = usual.milliseconds("qrs_onset", "t_end")
    return Measurements(
        rate,
        usual.milliseconds("p_onset", "qrs_onset"),
        usual.milliseconds("qrs_onset", "qrs_end"),
        qt,
        qt / float(np.median(rr)) ** (1 / 3),
        *_axes(record, usual),
    )


def _p_repeats(signal: np.ndarray, found: Delineation, usual: UsualBeat) -> bool:
    """Whether the beats have in common what stands where the usual beat has its P wave.

    Fibrillation moves there too, and the median of some beats keeps a hump of it. n beats without anything in common
    leave a mean of a n-th of their scatter; a P wave leaves many times that.
    """
    times, rate = usual.times, usual.sampling_rate
    if not (np.isfinite(times["p_onset"]) and np.isfinite(times["p_end"])):
        return False
    first, last = (round((times[edge] - times["r_peak"]) * rate) for edge in ("p_onset", "p_end"))
    alike = found.peaks[np.nan_to_num(found.likeness) > ALIKE]
    whole = alike[(alike + first >= 0) & (alike + last < signal.shape[1])]
    if len(whole) < 2 or last - first < 2:
        return False
    pieces = np.stack([signal[:, peak + first : peak + last + 1] for peak in whole])
    ramp = np.linspace(0.0, 1.0, pieces.shape[-1])
    pieces = pieces - (pieces[..., :1] * (1 - ramp) + pieces[..., -1:] * ramp)  # the level may wander
    mean = pieces.mean(axis=0)
    scatter = np.square(pieces - mean).sum() / (len(pieces) - 1)
    return bool(len(pieces) * np.square(mean).sum() > REPEATS * scatter)


def frontal(lead_i: float, avf: float) -> tuple[float, float]:
    """What I and aVF show of a vector -> its components to the left and downwards, at one scale.

    An augmented lead is the projection on its axis times sqrt(3) / 2 of what a bipolar one is (Einthoven's triangle).
    """
    return lead_i, avf * 2 / np.sqrt(3)


def _axes(record: EcgRecord, usual: UsualBeat) -> tuple[float, float, float]:
    recorded = np.flatnonzero(record.lead_mask)
    places = [int(np.searchsorted(recorded, STANDARD_LEADS.index(lead))) for lead in ("I", "aVF")]
    if not all(record.lead_mask[STANDARD_LEADS.index(lead)] for lead in ("I", "aVF")):
        return np.nan, np.nan, np.nan
    rows = usual.leads[places]
    waves = (("p_onset", "p_end"), ("qrs_onset", "qrs_end"), ("qrs_end", "t_end"))
    p, qrs, t = (_axis(rows, *(usual.times[edge] * usual.sampling_rate for edge in wave)) for wave in waves)
    return p, qrs, t


def _axis(rows: np.ndarray, start: float, end: float) -> float:
    """Degrees of the area between two samples, NaN where there is no such wave or next to nothing of it."""
    if not (np.isfinite(start) and np.isfinite(end)):
        return np.nan
    area = rows[:, round(start) : round(end) + 1].mean(axis=1)
    left, down = frontal(*area)
    return float(np.degrees(np.arctan2(down, left))) if np.hypot(left, down) > SMALLEST_MV else np.nan


SMALLEST_MV = 0.005
"""Mean height of a wave in the frontal plane below which it has no direction there."""


def words(found: Measurements) -> list[str]:
    """Lines of a picture's head, without what is not known; empty where nothing is."""
    lines = []
    if np.isfinite(found.rate):
        lines.append(f"rate {found.rate:.0f}/min")
    intervals = [f"{name} {value:.0f}" for name, value in (("PR", found.pr), ("QRS", found.qrs)) if np.isfinite(value)]
    if np.isfinite(found.qt):
        intervals.append(f"QT/QTc {found.qt:.0f}/{found.qtc:.0f}")
    if intervals:
        lines.append(f"{', '.join(intervals)} ms")
    axes = [(name, value) for name, value in zip(("P", "QRS", "T"), found[5:], strict=True) if np.isfinite(value)]
    if axes:
        lines.append(f"axes {', '.join(f'{name} {value:.0f}' for name, value in axes)} degrees")
    return lines
