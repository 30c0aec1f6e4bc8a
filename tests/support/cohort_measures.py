"""Measuring what the generator drew, on the noise-free leads and without looking at its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np

from cardialign.data_shards.cohort.dipole import limb_values
from cardialign.data_shards.cohort.patients import Patient, Visit
from cardialign.data_shards.cohort.rhythm import Beats
from cardialign.data_shards.cohort.synthesis import Heart, beat_heart, draft_visit

RATE = 1000
ADULTS = tuple(range(24))
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


@dataclass(frozen=True)
class Measured:
    """A noise-free 12-lead recording at 1 kHz, mV, with its beat times in s."""

    leads: dict[str, np.ndarray]
    beats: Beats
    heart: Heart

    def beat(self) -> float:
        """QRS onset in s of a conducted beat well inside the record."""
        return next(q for q, early in zip(self.beats.qrs, self.beats.ventricular, strict=True) if q > 2.0 and not early)

    def cut(self, lead: str, start_ms: float, stop_ms: float) -> np.ndarray:
        """The stretch of a lead between two times after QRS onset, mV.

        Leads without noise rest at zero, so nothing is subtracted.
        """
        at = self.beat()
        return self.leads[lead][round((at + start_ms / 1000) * RATE) : round((at + stop_ms / 1000) * RATE)]

    def qrs_ms(self) -> int:
        """Duration over which the leads move fast, ms.

        It is the unbroken stretch above 7 % of their greatest speed; pauses of up to 22 ms at peaks are allowed.
        """
        at = round(self.beat() * RATE)
        start = at + (4 if self.heart.draft.beat.spike is not None else -30)  # a pacing spike is no part of the QRS
        speed = sum(np.abs(np.diff(x[start : at + 260])) for x in self.leads.values())
        fast = np.flatnonzero(speed > 0.07 * speed.max())
        top = int(np.searchsorted(fast, np.argmax(speed)))
        breaks = np.flatnonzero(np.diff(fast) > 22)
        first = fast[max((b + 1 for b in breaks if b < top), default=0)]
        last = fast[min((b for b in breaks if b >= top), default=len(fast) - 1)]
        return int(last - first)

    def peak(self, lead: str) -> float:
        """R: the highest point of the QRS, mV."""
        return float(self.cut(lead, -10, self.width() + 10).max())

    def trough(self, lead: str) -> float:
        """Q or S: the lowest point of the QRS as a positive number, mV."""
        return float(-self.cut(lead, -10, self.width() + 10).min())

    def width(self) -> float:
        return self.heart.draft.beat.qrs_ms

    def st(self, lead: str) -> float:
        """Level 40 ms after the end of the QRS, mV."""
        return float(self.cut(lead, self.width() + 40, self.width() + 41)[0])

    def t(self, lead: str) -> float:
        """T wave: the value farthest from zero between 60 % and 100 % of QT, mV."""
        qt = self.qt()
        part = self.cut(lead, 0.62 * qt, qt)
        return float(part[np.argmax(np.abs(part))])

    def qt(self) -> float:
        """QT in ms: the T wave has ended when the vector magnitude stays below 4 % of the T peak."""
        at = round(self.beat() * RATE)
        start, stop = at + round(self.width()) + 80, at + 750
        after = [round(x * RATE) for x in (*self.beats.p, *self.beats.qrs) if x * RATE > start]
        size = sum(np.abs(x[start : min([stop, *after])]) for x in self.leads.values())
        peak = int(np.argmax(size))
        below = np.flatnonzero(size[peak:] < 0.04 * size[peak])
        return float(start - at + peak + (below[0] if len(below) else len(size) - peak))

    def axis(self) -> float:
        one, avf = (float(self.cut(lead, -10, self.width() + 10).sum()) for lead in ("I", "aVF"))
        return float(np.degrees(np.arctan2(avf * 2 / np.sqrt(3), one)))

    def rates(self) -> np.ndarray:
        return 60 / np.diff([q for q in self.beats.qrs if 0 < q < 10])


def person(
    age: float, index: int, findings: tuple[str, ...], male: bool | None = None, by_age: bool = False
) -> tuple[Patient, Visit]:
    visit = Visit(1, 40_000_001, age, datetime(2150, 1, 1, 12), findings)
    sex = index % 2 == 0 if male is None else male
    return Patient(index, 10_000_001, sex, age, visit.time, (visit,), (), by_age), visit


def measured(
    findings: tuple[str, ...] | str, seed: int, age: float | None = None, *, by_age: bool = False, seconds: float = 10.0
) -> Measured:
    """One noise-free recording of a person with these findings; adults of 32 to 85 unless told otherwise."""
    codes = (findings,) if isinstance(findings, str) else findings
    years = 32 + (seed * 37) % 53 if age is None else age
    patient, visit = person(years, seed, codes, by_age=by_age)
    heart = beat_heart(draft_visit(patient, visit, seed, seconds), RATE, np.random.default_rng(seed))
    values = np.concatenate([limb_values(heart.leads), heart.leads[2:]])
    return Measured(dict(zip(LEADS, values, strict=True)), heart.beats, heart)
