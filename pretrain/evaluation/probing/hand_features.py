"""Hand features: what a reader measures on an ECG, as numbers. A floor that learnt features must clear.

Rates and their changes, intervals, axes, and of every lead the amplitudes of its usual beat; from
`cardialign.data_shards.signal.delineate`. What a record does not show (a P wave in atrial fibrillation, a missing lead)
is NaN; `filled` puts the median of the training records there.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import butter, sosfiltfilt

from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.signal.delineate import Delineation, UsualBeat, delineate
from cardialign.data_shards.signal.measurements import frontal

RHYTHM = (
    "beats per minute", "RR median", "RR spread", "RR change", "shortest RR", "longest RR", "early beats",
    "irregular share", "RR memory", "unlike beats", "least likeness", "mean likeness",
)  # fmt: skip
INTERVALS = ("P", "PR", "QRS", "QT", "QTc", "T peak to end", "has P")
AXES = ("P axis sin", "P axis cos", "QRS axis sin", "QRS axis cos", "T axis sin", "T axis cos", "QRS-T angle")
OF_LEAD = ("P", "Q", "R", "S", "QRS area", "ST at J", "ST at J + 60 ms", "T", "fibrillation band")
VOLTAGES = ("S V1 + R V5", "R aVL + S V3", "R / S V1", "limb voltage", "R progression")
NAMES = (*RHYTHM, *INTERVALS, *AXES, *(f"{what} {lead}" for what in OF_LEAD for lead in STANDARD_LEADS), *VOLTAGES)
"""What each column holds: seconds, millivolts, mV s, or a ratio."""


def hand_features(signal: np.ndarray, lead_mask: np.ndarray, valid_samples: int, sampling_rate: float) -> np.ndarray:
    """signal (12, T) mV, lead_mask bool (12,) -> float32 (len(NAMES),), NaN where nothing can be measured."""
    recorded = np.asarray(signal, dtype=np.float64)[:, :valid_samples]
    recorded = recorded[lead_mask] if lead_mask.any() else recorded[:0]
    found = delineate(recorded, sampling_rate)
    of_leads = np.full((len(OF_LEAD), len(STANDARD_LEADS)), np.nan)
    intervals, axes = np.full(len(INTERVALS), np.nan), np.full(len(AXES), np.nan)
    if found.usual is not None:
        of_leads[:-1, lead_mask] = _amplitudes(found.usual)
        of_leads[-1, lead_mask] = _between_beats(recorded, found, sampling_rate)
        intervals = _intervals(found)
        axes = _axes(of_leads)
    parts = [_rhythm(found, valid_samples / sampling_rate), intervals, axes, of_leads.ravel(), _voltages(of_leads)]
    return np.concatenate(parts).astype(np.float32)


def filled(features: np.ndarray, training: np.ndarray) -> np.ndarray:
    """NaN -> the median of that feature over the training rows; 0 where none of them has it."""
    known = np.isfinite(features[training]).any(axis=0)
    middle = np.zeros(features.shape[1], dtype=features.dtype)
    middle[known] = np.nanmedian(
        np.where(np.isfinite(features[training]), features[training], np.nan)[:, known], axis=0
    )
    return np.where(np.isfinite(features), features, middle)


def _rhythm(found: Delineation, seconds: float) -> np.ndarray:
    out = np.full(len(RHYTHM), np.nan)
    out[0] = 60.0 * len(found.peaks) / max(seconds, 1e-9)
    rr = found.rr_seconds
    if len(rr) >= 2:
        middle, change = float(np.median(rr)), np.diff(rr)
        centred = rr - rr.mean()
        out[1:9] = (
            middle,
            rr.std() / middle,
            np.sqrt(np.mean(change**2)) / middle,
            rr.min() / middle,
            rr.max() / middle,
            np.mean(rr < 0.85 * middle),
            np.mean(np.abs(change) > 0.06 * middle),
            (centred[:-1] * centred[1:]).sum() / max(float((centred**2).sum()), 1e-9),
        )
    likeness = found.likeness[np.isfinite(found.likeness)]
    if likeness.size:
        out[9:] = np.mean(likeness < 0.85), likeness.min(), likeness.mean()
    return out


def _intervals(found: Delineation) -> np.ndarray:
    usual = found.usual
    assert usual is not None
    bounds = (("p_onset", "p_end"), ("p_onset", "qrs_onset"), ("qrs_onset", "qrs_end"), ("qrs_onset", "t_end"))
    p, pr, qrs, qt = (usual.milliseconds(*pair) / 1000.0 for pair in bounds)
    rr = float(np.median(found.rr_seconds)) if len(found.peaks) > 1 else np.nan
    has_p = float(np.isfinite(usual.times["p_peak"]))
    return np.array([p, pr, qrs, qt, qt / rr ** (1 / 3), usual.milliseconds("t_peak", "t_end") / 1000.0, has_p])


def _amplitudes(usual: UsualBeat) -> np.ndarray:
    """(8, L): the rows of OF_LEAD but the last."""
    rate, leads = usual.sampling_rate, usual.leads
    onset, end = (round(usual.times[name] * rate) for name in ("qrs_onset", "qrs_end"))
    qrs = leads[:, onset : max(end, onset + 1) + 1]
    highest = qrs.argmax(axis=1)
    q = np.array([row[: at + 1].min() for row, at in zip(qrs, highest, strict=True)])
    s = np.array([row[at:].min() for row, at in zip(qrs, highest, strict=True)])
    start = end + round(0.08 * rate)
    stop = round(usual.times["t_end"] * rate) if np.isfinite(usual.times["t_end"]) else leads.shape[1]
    wave = leads[:, start : max(stop, start + 1)]
    t = np.full(len(leads), np.nan)
    if wave.shape[1]:
        t = np.take_along_axis(wave, np.abs(wave).argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.stack(
        [
            usual.at(usual.times["p_peak"]),
            np.minimum(q, 0.0),
            np.maximum(qrs.max(axis=1), 0.0),
            np.minimum(s, 0.0),
            qrs.sum(axis=1) / rate,
            usual.at(usual.times["qrs_end"]),
            usual.at(usual.times["qrs_end"] + 0.06),
            t,
        ]
    )


def _between_beats(signal: np.ndarray, found: Delineation, rate: float) -> np.ndarray:
    """(L,): size of what moves at 3 to 12 Hz between the T wave and the next QRS, mV: flutter and fibrillation."""
    sos = butter(2, (3.0, 12.0), "bandpass", fs=rate, output="sos")
    band = sosfiltfilt(sos, signal, axis=1)
    counted = np.zeros(signal.shape[1], dtype=bool)
    for peak, following in zip(found.peaks, found.peaks[1:], strict=False):
        counted[round(peak + 0.6 * (following - peak)) : round(following - 0.08 * rate)] = True
    return np.sqrt(np.square(band[:, counted]).mean(axis=1)) if counted.any() else np.full(len(signal), np.nan)


def _of(rows: np.ndarray, what: str, lead: str) -> float:
    return float(rows[OF_LEAD.index(what), STANDARD_LEADS.index(lead)])


def _axes(rows: np.ndarray) -> np.ndarray:
    """Frontal axes from I and aVF, as sine and cosine; the angle between those of QRS and T as its cosine."""
    out = []
    for what in ("P", "QRS area", "T"):
        x, y = frontal(_of(rows, what, "I"), _of(rows, what, "aVF"))
        size = np.hypot(x, y)
        out += [y / size, x / size] if size > 1e-6 else [np.nan, np.nan]
    return np.array([*out, out[2] * out[4] + out[3] * out[5]])


def _voltages(rows: np.ndarray) -> np.ndarray:
    limb = rows[OF_LEAD.index("R"), :6] - rows[OF_LEAD.index("S"), :6]
    chest = [_of(rows, "R", f"V{k}") for k in range(1, 7)]
    return np.array(
        [
            _of(rows, "R", "V5") - _of(rows, "S", "V1"),
            _of(rows, "R", "aVL") - _of(rows, "S", "V3"),
            _of(rows, "R", "V1") / max(-_of(rows, "S", "V1"), 0.05),
            limb.mean(),
            (chest[3] - chest[1]) / max(0.1, *[c for c in chest if np.isfinite(c)], 0.0),
        ]
    )
