"""Delineation against hearts whose beats and intervals are known: every beat found, intervals to a few milliseconds."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.signal import resample_poly

from cardialign.data_shards.signal.delineate import Delineation, delineate
from tests.support.cohort_measures import LEADS, RATE, Measured, measured

HEARTS = ("NORM", "STACH", "SBRAD", "LBBB", "RBBB", "1AVB", "LVH", "LQT", "PAC", "PVC", "AFIB", "WPW")
seeds = pytest.mark.parametrize("seed", range(3))


@cache
def heart(code: str, seed: int) -> Measured:
    return measured(code, seed)


def recording(m: Measured, rate: int, noise: float = 0.015) -> np.ndarray:
    """(12, T) mV at `rate`, with wander and noise."""
    draw = np.random.default_rng(0)
    leads = resample_poly(np.stack([m.leads[lead] for lead in LEADS]), rate, RATE, axis=1)
    time = np.arange(leads.shape[1]) / rate
    wander = 0.15 * np.sin(2 * np.pi * (0.2 * time + draw.random((12, 1))))
    return leads + wander + noise * draw.normal(size=leads.shape)


def beats_found(found: Delineation, m: Measured) -> tuple[int, int, int]:
    """True beats that lie whole in the record, those of them that were found, and peaks at no beat."""
    onsets = np.array([q for q in m.beats.qrs if -0.05 < q < 10])
    peaks = found.peaks / found.sampling_rate
    near = np.abs(peaks[:, None] - onsets - 0.05) < 0.1
    inside = (onsets > 0.1) & (onsets < 9.8)
    return int(inside.sum()), int(near[:, inside].any(axis=0).sum()), int((~near.any(axis=1)).sum())


@seeds
@pytest.mark.parametrize("rate", [100, 500])
@pytest.mark.parametrize("code", HEARTS)
def test_every_beat_is_found_and_nothing_else(code: str, rate: int, seed: int) -> None:
    m = heart(code, seed)
    true, found, false = beats_found(delineate(recording(m, rate), rate), m)
    assert (found, false) == (true, 0)


@seeds
def test_atria_that_beat_on_their_own_do_not_make_the_rate(seed: int) -> None:
    """In complete heart block a P wave on a T wave may pass for a beat; the usual distance is the ventricles'."""
    m = heart("3AVB", seed)
    found = delineate(recording(m, 500), 500)
    assert np.median(found.rr_seconds) == pytest.approx(np.median(np.diff(m.beats.qrs)), rel=0.02)


@pytest.mark.parametrize(("rate", "tolerance"), [(100, 15.0), (250, 12.0), (500, 12.0)])
def test_intervals_are_those_that_the_hearts_were_made_with(rate: int, tolerance: float) -> None:
    """In the median over people, milliseconds; the width of PR, QRS and QT among them is far larger."""
    errors: dict[str, list[float]] = {"PR": [], "QRS": [], "QT": []}
    for code in ("NORM", "SBRAD", "LBBB", "1AVB", "LVH", "LQT"):
        for seed in range(3):
            m = heart(code, seed)
            usual, beat = delineate(recording(m, rate), rate).usual, m.heart.draft.beat
            assert usual is not None
            errors["PR"].append(usual.milliseconds("p_onset", "qrs_onset") - beat.pr_ms)
            errors["QRS"].append(usual.milliseconds("qrs_onset", "qrs_end") - beat.qrs_ms)
            errors["QT"].append(
                usual.milliseconds("qrs_onset", "t_end") - float(beat.qt_ms(np.median(np.diff(m.beats.qrs))))
            )
    for name, of_name in errors.items():
        assert np.isfinite(of_name).mean() > 0.8, name
        assert abs(np.nanmedian(of_name)) < tolerance, name
        assert np.nanmedian(np.abs(of_name)) < 1.5 * tolerance, name


@seeds
def test_a_long_pr_and_a_wide_qrs_stand_out(seed: int) -> None:
    normal, long, wide = (delineate(recording(heart(c, seed), 500), 500).usual for c in ("NORM", "1AVB", "LBBB"))
    assert normal is not None and long is not None and wide is not None
    assert normal.milliseconds("p_onset", "qrs_onset") < 205 < long.milliseconds("p_onset", "qrs_onset") + 15
    assert normal.milliseconds("qrs_onset", "qrs_end") < 115 < wide.milliseconds("qrs_onset", "qrs_end")


@seeds
def test_ectopic_beats_do_not_look_like_the_usual_one(seed: int) -> None:
    m = heart("PVC", seed)
    found = delineate(recording(m, 500), 500)
    times = found.peaks / 500
    ectopic = [q for q, early in zip(m.beats.qrs, m.beats.ventricular, strict=True) if early and 0.5 < q < 9.3]
    assert ectopic
    is_ectopic = np.array([any(abs(t - q - 0.06) < 0.12 for q in ectopic) for t in times])
    known = np.isfinite(found.likeness)
    assert found.likeness[known & is_ectopic].max() < 0.85 < np.median(found.likeness[known & ~is_ectopic])


def test_the_usual_beat_starts_at_zero_and_keeps_its_voltage() -> None:
    m = heart("LVH", 1)
    usual = delineate(recording(m, 500, noise=0.0), 500).usual
    assert usual is not None
    np.testing.assert_allclose(usual.at(usual.times["qrs_onset"]), 0, atol=0.08)
    for lead in ("V5", "aVL", "II"):
        assert usual.leads[LEADS.index(lead)].max() == pytest.approx(m.peak(lead), abs=0.12 * abs(m.peak(lead)) + 0.05)
    assert np.isnan(usual.at(float("nan"))).all() and np.isnan(usual.at(99.0)).all()


def test_one_lead_is_enough_for_beats() -> None:
    m = heart("NORM", 2)
    for lead in (1, 6):  # II, and V1, which points down
        true, found, false = beats_found(delineate(recording(m, 500)[[lead]], 500), m)
        assert (found, false) == (true, 0)


@pytest.mark.parametrize(
    "signal",
    [np.zeros((0, 5000)), np.zeros((12, 0)), np.zeros((12, 5000)), np.full((2, 5000), 3.3), np.ones((12, 300))],
    ids=["no leads", "no samples", "flat", "flat elsewhere", "0.6 s"],
)
def test_where_there_is_nothing_nothing_is_found(signal: np.ndarray) -> None:
    found = delineate(signal, 500)
    assert len(found.peaks) == 0 and found.usual is None and len(found.rr_seconds) == 0


def test_noise_alone_is_no_reason_to_fail() -> None:
    found = delineate(np.random.default_rng(0).normal(size=(12, 5000)), 500)
    assert np.isfinite(found.peaks).all()


def test_too_low_a_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 60 Hz"):
        delineate(np.zeros((12, 500)), 50)
