"""In many data sets of a known truth, the 95 % interval of a class, of the macro and of a difference holds it.

The scores are binormal: AUROC = Phi(d / sqrt 2) for d standard deviations. Patients have one to six records each, which
share half of their variance; within a patient some records have the class and others do not. Two systems are correlated
in their scores, and differ by a known amount.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import binom, norm

from cardialign.pretrain.evaluation.scoring import score_classes

SETS, PATIENTS, RESAMPLES = 100, 150, 100
HAVING = np.array([5, 5, 8, 8, 15, 15, 40, 40] * 2)
TRUTH = np.array([0.7, 0.95, 0.7, 0.95, 0.7, 0.95, 0.7, 0.95] * 2)
WORSE = TRUTH - 0.06


@dataclass(frozen=True)
class Held:
    """How often the truth lay inside: classes (sets, C) bool, likewise differences; macro and difference (sets,)."""

    classes: np.ndarray
    class_differences: np.ndarray
    macro: np.ndarray
    difference: np.ndarray
    widths: np.ndarray
    figures: np.ndarray


def systems(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores of two systems (n, C), truth (n, C), patients (n,)."""
    of = np.repeat(np.arange(PATIENTS), rng.integers(1, 7, PATIENTS))
    has = np.stack([np.isin(np.arange(PATIENTS), rng.choice(PATIENTS, k, replace=False)) for k in HAVING], axis=1)
    first = np.r_[True, of[1:] != of[:-1]][:, None]
    truth = has[of] & (first | (rng.random((len(of), len(HAVING))) < 0.6))

    def noise() -> np.ndarray:
        return (rng.normal(size=truth.shape) + rng.normal(size=has.shape)[of]) / np.sqrt(2)

    one = noise()
    two = 0.7 * one + np.sqrt(1 - 0.7**2) * noise()
    apart = (norm.ppf(values) * np.sqrt(2) for values in (TRUTH, WORSE))
    return one + truth * next(apart), two + truth * next(apart), truth, of


@pytest.fixture(scope="module")
def held() -> Held:
    names = [(str(c), str(c)) for c in range(len(TRUTH))]
    rows: list[tuple[np.ndarray, ...]] = []
    for number in range(SETS):
        one, two, truth, patients = systems(np.random.default_rng([number, 77]))
        a, b = score_classes([one, two], truth, patients, names, resamples=RESAMPLES, seed=number)
        gain, gains = a.less(b)
        low, high = (np.array([getattr(each, end) for each in a.classes]) for end in ("low", "high"))
        less, more = (np.array([getattr(each, end) for each in gains]) for end in ("low", "high"))
        rows.append(
            (
                (low <= TRUTH) & (high >= TRUTH),
                (less <= TRUTH - WORSE) & (more >= TRUTH - WORSE),
                np.array(a.macro.low <= TRUTH.mean() <= a.macro.high),
                np.array(gain.low <= (TRUTH - WORSE).mean() <= gain.high),
                high - low,
                np.array([each.auroc for each in a.classes]),
            )
        )
    return Held(*(np.stack(column) for column in zip(*rows, strict=True)))


def least(trials: int) -> int:
    """Fewer hits than this, of so many trials at 95 %, come about by luck once in a thousand."""
    return int(binom.ppf(0.001, trials, 0.95))


@pytest.mark.slow
def test_the_macro_and_the_paired_difference_hold_the_truth(held: Held) -> None:
    for hits in (held.macro, held.difference):
        assert least(SETS) <= hits.sum()


@pytest.mark.slow
@pytest.mark.parametrize("patients", [5, 8, 15, 40])
def test_every_class_and_its_difference_hold_the_truth_however_rare(held: Held, patients: int) -> None:
    """Of rare classes the interval is on the safe side: three in a hundred too often, rather than too rarely."""
    for hits in (held.classes[:, patients == HAVING], held.class_differences[:, patients == HAVING]):
        assert least(hits.size) <= hits.sum()


@pytest.mark.slow
def test_intervals_of_classes_that_are_not_rare_are_no_wider_than_they_must_be(held: Held) -> None:
    """1.96 standard deviations of the figures that these data sets gave, to each side, would be enough."""
    often = HAVING >= 15
    ideal = 2 * 1.96 * held.figures[:, often].std(axis=0, ddof=1)
    assert (held.widths[:, often].mean(axis=0) / ideal).mean() < 1.25
    hits = held.classes[:, HAVING == 40]
    assert hits.sum() <= binom.ppf(0.999, hits.size, 0.95)


@pytest.mark.slow
def test_an_interval_that_takes_records_for_patients_would_not_have_held(held: Held) -> None:
    """The check can fail: the same data, every record a patient of its own."""
    names, hits = [(str(c), str(c)) for c in range(len(TRUTH))], 0
    for number in range(SETS // 4):
        one, _, truth, patients = systems(np.random.default_rng([number, 77]))
        alone = score_classes([one], truth, np.arange(len(patients)), names, resamples=RESAMPLES, seed=number)[0]
        hits += sum(each.low <= value <= each.high for each, value in zip(alone.classes, TRUTH, strict=True))
    assert hits < least(SETS // 4 * len(TRUTH)) and held.classes.mean() > hits / (SETS // 4 * len(TRUTH))
