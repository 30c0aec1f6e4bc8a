"""The figures beside a map are those of a plain count over neighbours of other patients."""

from __future__ import annotations

import numpy as np
import pytest

from cardialign.pretrain.evaluation.atlas import surroundings as module
from cardialign.pretrain.evaluation.atlas.surroundings import Labelled, mean_of, surroundings

RNG = np.random.default_rng(0)
N = 40
UNIT = RNG.normal(size=(N, 5))
UNIT /= np.linalg.norm(UNIT, axis=1, keepdims=True)
LABELLED = RNG.random(N) < 0.8
TRUTH = (RNG.random((N, 3)) < [0.5, 0.3, 0.0]) & LABELLED[:, None]
AGES = np.where(RNG.random(N) < 0.2, np.nan, RNG.uniform(0, 90, N))
PATIENTS = np.arange(N) // 2
ABOUT = Labelled(TRUTH, LABELLED, AGES, PATIENTS, (("A", "a"), ("B", "b"), ("C", "c")))


def plain(i: int, k: int | None) -> tuple[float, float]:
    """Share of labelled records near i that share a class of it, and mean difference of age; k None: of all."""
    others = [j for j in range(N) if PATIENTS[j] != PATIENTS[i]]
    if k is not None:
        others = sorted(others, key=lambda j: -float(UNIT[i] @ UNIT[j]))[:k]
    known = [j for j in others if LABELLED[j]]
    has = LABELLED[i] and TRUTH[i].any() and known
    share = np.mean([bool((TRUTH[i] & TRUTH[j]).any()) for j in known]) if has else np.nan
    years = [abs(AGES[i] - AGES[j]) for j in others if np.isfinite(AGES[i]) and np.isfinite(AGES[j])]
    return float(share), float(np.mean(years)) if years else np.nan


def test_they_are_those_of_a_plain_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 7 * N)  # several blocks, the last one short
    found = surroundings(UNIT, ABOUT, k=6)
    for i in range(N):
        expected, chance = plain(i, 6), plain(i, None)
        np.testing.assert_allclose((found.sharing[i], found.years[i]), expected, atol=1e-6)
        np.testing.assert_allclose((found.chance[i], found.years_chance[i]), chance, atol=1e-6)


def test_per_class_it_is_the_mean_over_the_records_that_have_it() -> None:
    found = surroundings(UNIT, ABOUT, k=6)
    for c in range(2):
        shares = []
        for i in np.flatnonzero(TRUTH[:, c]):
            others = [j for j in range(N) if PATIENTS[j] != PATIENTS[i]]
            near = [j for j in sorted(others, key=lambda j: -float(UNIT[i] @ UNIT[j]))[:6] if LABELLED[j]]
            shares.append(np.mean([TRUTH[j, c] for j in near]) if near else 0.0)
        assert found.classes[c, 0] == pytest.approx(np.mean(shares), abs=1e-6)
    assert np.isnan(found.classes[2]).all(), "a class that none has is not averaged over"


def test_two_records_of_one_person_are_no_neighbours_however_alike() -> None:
    unit = np.repeat(UNIT[::2], 2, axis=0)  # both records of a patient are the same
    truth = np.repeat(np.eye(20, dtype=bool), 2, axis=0)
    about = Labelled(truth, np.ones(N, bool), AGES, PATIENTS, tuple((str(c), str(c)) for c in range(20)))
    assert surroundings(unit, about).sharing.max() == 0


def test_more_neighbours_than_others_are_all_others_and_what_is_unknown_has_no_mean() -> None:
    found = surroundings(UNIT, ABOUT, k=500)
    np.testing.assert_allclose(found.sharing, found.chance)
    nothing = mean_of(np.full(N, np.nan), PATIENTS, seed=0)
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    mean = mean_of(found.sharing, PATIENTS, seed=0)
    assert mean.low < mean.value < mean.high and mean.value == pytest.approx(np.nanmean(found.sharing))
