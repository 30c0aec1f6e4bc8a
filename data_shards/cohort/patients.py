"""Who is in the cohort and what they have: ages, sexes, visits, chronic findings of patients and passing findings of
records.

The plan is made once, from the seed alone, before any signal is drawn; so it does not depend on the number of workers.
Balanced prevalence deals the findings from a shuffled deck, so that even a small cohort has its share of each; clinical
prevalence draws them as often as they occur in practice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np

from cardialign.data_shards.cohort.findings import FINDINGS, NORMAL, compatible
from cardialign.data_shards.cohort.for_age import YOUNGEST
from cardialign.data_shards.cohort.norms import BANDS

PREVALENCES = ("balanced", "clinical")
LIFESPAN = "lifespan"
"""The layout whose people are judged by their age."""
_CHRONIC_SHARE, _HEALTHY_NORMAL, _CHRONIC_PASSING, _SECOND = (
    0.60,
    0.34,
    0.40,
    0.18,
)  # balanced: tuned to 25 positives in 1,000 and 13 % normal
# record numbers are spread over eight digits by multiplication modulo a prime: unique, and not in the order of creation
_PRIME = 9_999_991


@dataclass(frozen=True)
class Visit:
    """One record to make: running number in the cohort, file number, age in years and time, and its findings in table
    order."""

    number: int
    study_id: int
    age: float
    time: datetime
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Patient:
    """One virtual person; `index` selects the random stream of everything drawn about them.

    by_age: while a child, heart and findings follow the published norms of the age (`growth`, `for_age`).
    """

    index: int
    subject_id: int
    male: bool
    age: float
    first: datetime
    visits: tuple[Visit, ...]
    chronic: tuple[str, ...] = ()
    by_age: bool = False


@dataclass
class _Deck:
    """Codes dealt in shuffled rounds, so that counts differ by at most one until exclusions forbid a card, which then
    waits for the next patient."""

    weights: dict[str, float]
    rng: np.random.Generator
    balanced: bool
    cards: list[str] = field(default_factory=list)
    youngest: Mapping[str, float] = field(default_factory=dict)

    def deal(self, present: list[str], age: float) -> str | None:
        if not self.weights:
            return None
        if not self.balanced:
            return self._draw(present, age)
        for _ in range(2):
            for place, code in enumerate(self.cards):
                if compatible(code, present, age, self.youngest):
                    return self.cards.pop(place)
            self.cards += [list(self.weights)[i] for i in self.rng.permutation(len(self.weights))]
        return None

    def _draw(self, present: list[str], age: float) -> str | None:
        fitting = [c for c in self.weights if compatible(c, present, age, self.youngest)]
        if not fitting:
            return None
        weight = np.array([self.weights[c] for c in fitting])
        return fitting[int(self.rng.choice(len(fitting), p=weight / weight.sum()))]


def draw_age(layout: str, rng: np.random.Generator) -> float:
    """Age in years: adults in MIMIC-IV, nearly all ages in PTB-XL, newborn (in days) to 15 years in the paediatric
    layout; birth to 90 years, every age group of the norms alike, in the lifespan layout."""
    if layout == LIFESPAN:
        groups = (*BANDS, (16.0, 30.0), (30.0, 90.0))
        return float(rng.uniform(*groups[int(rng.integers(len(groups)))]))
    if layout == "paediatric":
        if rng.random() < 0.18:
            return float(rng.integers(0, 28)) / 365.25
        return float(rng.uniform(0.08, 3) if rng.random() < 0.4 else rng.uniform(3, 14.9))
    if layout == "ptb-xl" and rng.random() < 0.03:
        return float(rng.uniform(3, 17.9))
    return float(np.clip(rng.normal(60, 18), 18.1, 97))


def plan_cohort(
    patients: int, records: int | None, layout: str, seed: int, prevalence: str, codes: tuple[str, ...]
) -> list[Patient]:
    """The whole cohort without its signals."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xC0407]))
    counts = _visit_counts(patients, records, rng)
    ages = [draw_age(layout, rng) for _ in range(patients)]
    youngest = YOUNGEST if layout == LIFESPAN else {}
    chronic = _deal_chronic(
        counts, ages, _Deck(_weights(codes, True), rng, prevalence == "balanced", [], youngest), codes
    )
    passing = _Deck(_weights(codes, False), rng, prevalence == "balanced", [], youngest)
    offset, step = int(rng.integers(1, _PRIME)), int(rng.integers(1000, _PRIME - 1000))
    plan, number = [], 0
    for index in range(patients):
        first = datetime(2110, 1, 1) + timedelta(days=int(rng.integers(0, 36000)), minutes=int(rng.integers(0, 1440)))
        if layout == "ptb-xl":
            first = datetime(1985, 1, 1) + timedelta(
                days=int(rng.integers(0, 5000)), minutes=int(rng.integers(0, 1440))
            )
        visits, time = [], first
        for _ in range(counts[index]):
            age = ages[index] + (time - first).days / 365.25
            findings = _visit_findings(chronic[index], age, prevalence, codes, passing, rng)
            study = 40_000_000 + (offset + number * step) % _PRIME
            visits.append(Visit(number + 1, study, age, time, findings))
            number += 1
            longest = 40 if ages[index] < 1 else 500
            time += timedelta(
                days=int(rng.integers(0, longest)) if rng.random() < 0.6 else 0, minutes=int(rng.integers(20, 1400))
            )
        subject = 10_000_000 + (7 * offset + 3 + index * (_PRIME - step)) % _PRIME
        male, own = bool(rng.random() < 0.52), tuple(chronic[index])
        plan.append(Patient(index, subject, male, ages[index], first, tuple(visits), own, layout == LIFESPAN))
    return plan


def _visit_counts(patients: int, records: int | None, rng: np.random.Generator) -> np.ndarray:
    """Records per patient: at least one each; without a total about two and a half on average, with a total exactly
    that many."""
    if records is None:
        return np.minimum(rng.geometric(0.42, patients), 8)
    extra = rng.multinomial(records - patients, rng.dirichlet(np.full(patients, 1.5)))
    return np.asarray(1 + extra)


def _weights(codes: tuple[str, ...], chronic: bool) -> dict[str, float]:
    return {c: FINDINGS[c].clinical for c in codes if c != NORMAL and FINDINGS[c].chronic == chronic}


def _deal_chronic(counts: np.ndarray, ages: list[float], deck: _Deck, codes: tuple[str, ...]) -> list[list[str]]:
    """Chronic findings of each patient.

    Patients with many records are dealt to first: rounds of the deck then carry about equal record counts.
    """
    out: list[list[str]] = [[] for _ in counts]
    weights, rng = deck.weights, deck.rng
    if not weights:
        return out
    order = np.argsort(-(counts + rng.random(len(counts))), kind="stable")
    share = _CHRONIC_SHARE if deck.balanced else min(sum(weights.values()), 0.9)
    if NORMAL not in codes and not _weights(codes, chronic=False):
        share = 1.0  # nothing else could make these people ill
    healthy = _spread(len(order), 1 - share, rng)
    for place, index in enumerate(order.tolist()):
        if healthy[place]:
            continue
        times = 2 if rng.random() < _SECOND else 1
        for _ in range(times):
            code = deck.deal(out[index], ages[index])
            if code:
                out[index].append(code)
    return out


def _spread(count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """bool (count,): True for `share` of the places, evenly spread."""
    start = float(rng.random())
    return np.diff(np.floor(start + share * np.arange(count + 1))) > 0


def _visit_findings(
    chronic: list[str], age: float, prevalence: str, codes: tuple[str, ...], deck: _Deck, rng: np.random.Generator
) -> tuple[str, ...]:
    """Findings of one record in table order; none at all means normal."""
    present = list(chronic)
    if prevalence == "balanced":
        chance = _CHRONIC_PASSING if chronic or NORMAL not in codes else 1 - _HEALTHY_NORMAL
        chances = (chance, _SECOND)
    else:
        total = sum(deck.weights.values())
        chances = (min(total, 0.9), 0.5 * min(total, 0.9))
    for chance in chances:
        if rng.random() >= chance and (present or NORMAL in codes):
            break
        code = deck.deal(present, age)
        if code is None:
            break
        present.append(code)
    return tuple(c for c in FINDINGS if c in present) or (NORMAL,)
