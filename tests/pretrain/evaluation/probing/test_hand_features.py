"""Hand features say what a reader would say of hearts whose findings are known."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.signal import resample_poly

from cardialign.pretrain.evaluation.probing.hand_features import NAMES, filled, hand_features
from tests.support.cohort_measures import LEADS, RATE, Measured, measured

ALL = np.ones(12, dtype=bool)
seeds = pytest.mark.parametrize("seed", range(3))


@cache
def heart(code: str, seed: int) -> Measured:
    return measured(code, seed)


def recording(code: str, seed: int, rate: int = 250) -> np.ndarray:
    m = heart(code, seed)
    leads = resample_poly(np.stack([m.leads[lead] for lead in LEADS]), rate, RATE, axis=1)
    return leads + 0.01 * np.random.default_rng(0).normal(size=leads.shape)


def features(code: str, seed: int) -> dict[str, float]:
    signal = recording(code, seed)
    return dict(zip(NAMES, hand_features(signal, ALL, signal.shape[1], 250.0).tolist(), strict=True))


@seeds
def test_rates_intervals_and_amplitudes_are_those_of_the_heart(seed: int) -> None:
    m, found = heart("NORM", seed), features("NORM", seed)
    inside = [q for q in m.beats.qrs if 0.1 < q < 9.8]
    assert found["RR median"] == pytest.approx(np.median(np.diff(inside)), rel=0.03)
    assert found["PR"] == pytest.approx(m.heart.draft.beat.pr_ms / 1000, abs=0.025)
    assert found["QRS"] == pytest.approx(m.heart.draft.beat.qrs_ms / 1000, abs=0.015)
    for lead in ("I", "V5"):
        assert found[f"R {lead}"] == pytest.approx(m.peak(lead), rel=0.15, abs=0.05)
        assert found[f"T {lead}"] == pytest.approx(m.t(lead), rel=0.25, abs=0.05)
    angle = np.degrees(np.arctan2(found["QRS axis sin"], found["QRS axis cos"]))
    assert abs((angle - m.axis() + 180) % 360 - 180) < 12
    assert found["has P"] == 1 and found["early beats"] == 0


@seeds
@pytest.mark.parametrize(
    ("code", "name", "more"),
    [
        ("STACH", "beats per minute", True),
        ("SBRAD", "beats per minute", False),
        ("1AVB", "PR", True),
        ("LBBB", "QRS", True),
        ("LQT", "QT", True),
        ("AFIB", "irregular share", True),
        ("AFIB", "RR spread", True),
        ("PAC", "shortest RR", False),
        ("PVC", "least likeness", False),
        ("LVH", "S V1 + R V5", True),
        ("RVH", "R V1", True),
        ("LAFB", "QRS axis sin", False),
        ("LVOLT", "limb voltage", False),
        ("ISTE", "ST at J + 60 ms II", True),
        ("STD", "ST at J + 60 ms V5", False),
        ("TINV", "T V5", False),
    ],
)
def test_a_finding_shows_where_a_reader_looks_for_it(code: str, name: str, more: bool, seed: int) -> None:
    normal = [features("NORM", each)[name] for each in range(3)]
    found = features(code, seed)[name]
    assert found > max(normal) if more else found < min(normal)


def test_a_lead_that_is_missing_has_no_amplitudes_and_disturbs_no_other() -> None:
    signal = recording("NORM", 0)
    without = ALL.copy()
    without[[3, 8]] = False
    broken = signal.copy()
    broken[[3, 8]] = np.nan
    first = hand_features(signal, without, signal.shape[1], 250.0)
    np.testing.assert_array_equal(first, hand_features(broken, without, signal.shape[1], 250.0))
    missing = {name for name, value in zip(NAMES, first, strict=True) if np.isnan(value)}
    assert {"R aVR", "T V3"} <= missing and "R II" not in missing


def test_what_is_behind_the_last_sample_does_not_count() -> None:
    signal = recording("NORM", 0)
    padded = np.concatenate([signal[:, :1500], np.full((12, 1000), 9.0)], axis=1)
    cut = hand_features(signal[:, :1500], ALL, 1500, 250.0)
    np.testing.assert_array_equal(hand_features(padded, ALL, 1500, 250.0), cut)


@pytest.mark.parametrize("leads", [ALL, ~ALL])
def test_nothing_to_measure_is_no_reason_to_fail(leads: np.ndarray) -> None:
    found = hand_features(np.zeros((12, 2500)), leads, 2500, 250.0)
    assert found.shape == (len(NAMES),) and found[0] == 0 and np.isnan(found[1:]).all()


def test_gaps_are_filled_by_the_median_of_the_training_records_alone() -> None:
    rows = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan], [9.0, np.nan, 7.0], [np.nan, 100.0, np.nan]])
    found = filled(rows, np.array([0, 1, 2]))
    np.testing.assert_array_equal(found, [[1, 5, 7], [3, 5, 7], [9, 5, 7], [3, 100, 7]])
    np.testing.assert_array_equal(filled(rows, np.array([0, 1]))[:, 2], [0, 0, 7, 0])
