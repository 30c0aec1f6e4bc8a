"""Beat-by-beat rhythm: when the atria and the ventricles fire.

Times in seconds; records run from 0 to `seconds`, rhythms start earlier and end later.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_LEAD_IN = 2.6  # seconds generated before the record, so that it opens in the middle of a rhythm


@dataclass
class RhythmPlan:
    """What drives the heart. Rates in beats per minute, fractions of the cycle without unit.

    origin: "sinus", "afib", "flutter", "paced" (ventricular, no P), "av-paced" (P, then paced QRS), "complete-block".
    premature_atrial, premature_ventricular: how many beats in a record; 0 none. wenckebach: beats per group, 0 none.
    """

    rate: float
    origin: str = "sinus"
    sinus_arrhythmia: float = 0.03
    breathing_hz: float = 0.25
    premature_atrial: int = 0
    premature_ventricular: int = 0
    coupling: float = 0.62
    wenckebach: int = 0
    atrial_rate: float = 0.0
    conduction: tuple[int, ...] = (2,)
    atrial_size: float = 0.1


@dataclass
class Beats:
    """p, p_early: onset of P waves in s and whether the beat is premature. qrs: onset in s. ventricular: True for a
    PVC. rr: the cycle before each QRS, s."""

    p: list[float] = field(default_factory=list)
    p_early: list[bool] = field(default_factory=list)
    pr: list[float] = field(default_factory=list)
    qrs: list[float] = field(default_factory=list)
    ventricular: list[bool] = field(default_factory=list)

    def atrial(self, onset: float, pr: float, early: bool = False) -> None:
        self.p.append(onset)
        self.pr.append(pr)
        self.p_early.append(early)

    def ventricle(self, onset: float, premature: bool = False) -> None:
        self.qrs.append(onset)
        self.ventricular.append(premature)

    def rr(self) -> np.ndarray:
        """Cycle before each QRS in s (b,); the first takes the second's."""
        gaps = np.diff(self.qrs)
        return np.concatenate([gaps[:1], gaps]) if len(gaps) else np.full(len(self.qrs), 0.8)


def generate(plan: RhythmPlan, pr_s: float, seconds: float, rng: np.random.Generator) -> Beats:
    """The beats of one record under `plan`, with PR interval `pr_s`."""
    maker = {
        "afib": _fibrillation,
        "flutter": _flutter,
        "paced": _paced,
        "av-paced": _sinus,
        "complete-block": _complete_block,
    }.get(plan.origin, _sinus)
    return maker(plan, pr_s, seconds, rng)


def _premature_times(count: int, cycle: float, seconds: float, rng: np.random.Generator) -> list[float]:
    """When to fire `count` premature beats: inside the record, at least two cycles apart so that each pause can be
    seen."""
    room = seconds - 1.8 - 3.0 * cycle
    count = min(count, max(1, int(room / (2.2 * cycle))))
    slots = np.sort(rng.uniform(0, max(room - 2.2 * cycle * (count - 1), 0.1), count)) + 2.2 * cycle * np.arange(count)
    return [float(x) for x in slots + 0.5 + cycle]


def _sinus(plan: RhythmPlan, pr_s: float, seconds: float, rng: np.random.Generator) -> Beats:
    beats = Beats()
    cycle = 60 / plan.rate
    atrial = _premature_times(plan.premature_atrial, cycle, seconds, rng) if plan.premature_atrial else []
    ventricular = (
        _premature_times(plan.premature_ventricular, cycle, seconds, rng) if plan.premature_ventricular else []
    )
    phase = rng.uniform(0, 2 * np.pi)
    jitter = iter((0.012 * rng.standard_normal(int((seconds + 5) / cycle * 1.6) + 8)).tolist())
    time, place, pr = -_LEAD_IN - float(rng.uniform(0, cycle)), int(rng.integers(0, 4)), pr_s
    while time < seconds + 0.6:
        if plan.wenckebach:
            last = plan.wenckebach - 1
            place = place % plan.wenckebach
            pr = pr_s + 0.16 * (1 - 0.55**place) / (1 - 0.55)
            beats.atrial(time, pr)
            if place != last:
                beats.ventricle(time + pr)
            place += 1
        else:
            beats.atrial(time, pr)
            beats.ventricle(time + pr)
        step = cycle * (
            1 + plan.sinus_arrhythmia * float(np.sin(2 * np.pi * plan.breathing_hz * time + phase)) + next(jitter, 0.0)
        )
        if atrial and time > atrial[0]:
            atrial.pop(0)
            early = time + step * (plan.coupling + 0.06)
            beats.atrial(early, pr + 0.015, early=True)
            beats.ventricle(early + pr + 0.015)
            time = early + step * float(
                rng.uniform(1.08, 1.25)
            )  # the sinus node is reset: the pause is not fully compensatory
        elif ventricular and time > ventricular[0]:
            ventricular.pop(0)
            beats.ventricle(time + pr + step * plan.coupling, premature=True)
            time += 2 * step  # the sinus beat in between finds the ventricles refractory: a fully compensatory pause
        else:
            time += step
    return beats


def _fibrillation(plan: RhythmPlan, pr_s: float, seconds: float, rng: np.random.Generator) -> Beats:
    """Irregularly irregular: independent cycles with a refractory floor, no P wave."""
    beats = Beats()
    cycle = 60 / plan.rate
    floor = max(0.27, 0.52 * cycle)
    gaps = floor + rng.gamma(3.2, (cycle - floor) / 3.2, int((seconds + 5) / floor) + 4)
    ventricular = (
        _premature_times(plan.premature_ventricular, cycle, seconds, rng) if plan.premature_ventricular else []
    )
    time = -_LEAD_IN
    for gap in gaps.tolist():
        time += gap
        if time > seconds + 0.6:
            break
        beats.ventricle(time)
        if ventricular and time > ventricular[0]:
            ventricular.pop(0)
            early = time + cycle * plan.coupling
            beats.ventricle(early, premature=True)
            time = early + 0.35 * cycle
    return beats


def _flutter(plan: RhythmPlan, pr_s: float, seconds: float, rng: np.random.Generator) -> Beats:
    """Every n-th flutter wave is conducted; n repeats the pattern in `plan.conduction`."""
    beats = Beats()
    wave = 60 / plan.atrial_rate
    time, turn = -_LEAD_IN, 0
    while time < seconds + 0.6:
        beats.ventricle(time + float(rng.normal(0, 0.004)))
        time += wave * plan.conduction[turn % len(plan.conduction)]
        turn += 1
    return beats


def _paced(plan: RhythmPlan, pr_s: float, seconds: float, rng: np.random.Generator) -> Beats:
    """A ventricular pacemaker at its fixed rate."""
    beats = Beats()
    for onset in np.arange(-_LEAD_IN + rng.uniform(0, 60 / plan.rate), seconds + 0.6, 60 / plan.rate):
        beats.ventricle(float(onset))
    return beats


def _complete_block(plan: RhythmPlan, pr_s: float, seconds: float, rng: np.random.Generator) -> Beats:
    """Atria and ventricles on their own: P at the atrial rate, QRS at the escape rate, neither heeding the other."""
    beats = _paced(plan, pr_s, seconds, rng)
    cycle = 60 / plan.atrial_rate
    for onset in np.arange(-_LEAD_IN + rng.uniform(0, cycle), seconds + 0.6, cycle):
        beats.atrial(float(onset + rng.normal(0, 0.006)), pr_s)
    return beats


def fibrillatory_waves(plan: RhythmPlan, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Heart vector (3, T) of atrial fibrillation: a few waves of 4.5-8 Hz that wax, wane and drift, largest towards
    V1."""
    out = np.zeros((3, len(times)), dtype=np.float32)
    main = np.array([-0.25, 0.35, -0.85])
    for share in (1.0, 0.6, 0.45):
        drift = 0.6 * np.sin(2 * np.pi * rng.uniform(0.2, 0.6) * times + rng.uniform(0, 6.3))
        swell = 1 + 0.45 * np.sin(2 * np.pi * rng.uniform(0.15, 0.5) * times + rng.uniform(0, 6.3))
        wave = swell * np.sin(2 * np.pi * rng.uniform(4.5, 8.0) * times + drift + rng.uniform(0, 6.3))
        out += ((plan.atrial_size * share * (main + 0.3 * rng.standard_normal(3)))[:, None] * wave).astype(np.float32)
    return out


def flutter_waves(plan: RhythmPlan, times: np.ndarray, start: float) -> np.ndarray:
    """Heart vector (3, T) of typical flutter: a sawtooth that slopes down and snaps back in II, III and aVF, and is
    upright in V1."""
    phase = (times - start) * plan.atrial_rate / 60
    saw = np.zeros(len(times), dtype=np.float32)
    for harmonic in range(1, 5):
        saw += (np.sin(2 * np.pi * harmonic * phase) / harmonic).astype(np.float32)
    return np.outer(np.array([0.0, 0.75, 0.35]) * plan.atrial_size, -saw).astype(np.float32)
