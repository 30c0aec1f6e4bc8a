"""Beats are where they were put, their statistics are arithmetic on the intervals, their average is the beat itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cardialign.pretrain.encoders.blocks.beats import (
    BINS,
    STATISTICS,
    Coarse,
    averaged_beat,
    beat_samples,
    coarse,
    coarse_rate,
    find_beats,
    rhythm_statistics,
)

RATE = 100.0


def waves(seconds: np.ndarray, beats: np.ndarray, leads: int = 12, t_wave: float = 0.3) -> np.ndarray:
    """mV (leads, T): P, a QRS complex of 1 mV (lead 0 upside down) and T at the given times in s."""
    total = np.zeros_like(seconds)
    for at in beats:
        for height, delay, width in (
            (0.15, -0.16, 0.02),
            (1.0, 0.0, 0.012),
            (-0.25, 0.035, 0.012),
            (t_wave, 0.3, 0.05),
        ):
            total += height * np.exp(-0.5 * ((seconds - at - delay) / width) ** 2)
    return np.stack([(-1.0 if lead == 0 else 0.5 + 0.1 * lead) * total for lead in range(leads)]).astype(np.float32)


def found(signal: np.ndarray, rate: float = RATE, mask: torch.Tensor | None = None) -> tuple[Coarse, torch.Tensor]:
    batch = torch.from_numpy(signal)[None]
    mask = torch.ones(1, len(signal), 1, dtype=torch.bool) if mask is None else mask
    record = coarse(batch, mask, rate)
    return record, find_beats(record)


@pytest.mark.parametrize("rate", [100.0, 128.0, 250.0, 500.0, 1000.0])
def test_beats_are_found_where_they_were_put_at_every_rate(rate: float) -> None:
    times = np.array([0.6, 1.4, 2.25, 3.0, 3.5, 4.7, 5.5, 6.3, 7.1, 8.0, 8.9])  # one premature, one pause
    seconds = np.arange(round(10 * rate)) / rate
    noise = np.random.default_rng(0).normal(0, 0.02, (12, seconds.size)).astype(np.float32)
    wander = (0.3 * np.sin(2 * np.pi * 0.25 * seconds)).astype(np.float32)
    record, beats = found(waves(seconds, times) + noise + wander, rate)
    assert record.rate == coarse_rate(rate) and 75 <= record.rate <= 150
    places = torch.nonzero(beats[0])[:, 0].numpy() / record.rate
    assert places.size == times.size
    assert np.abs(places - times).max() < 0.03


def test_a_tall_t_wave_is_no_beat_and_silence_has_none() -> None:
    seconds = np.arange(1000) / RATE
    times = np.arange(0.5, 10, 1.0)
    assert int(found(waves(seconds, times, t_wave=1.0))[1].sum()) == times.size
    record, beats = found(np.zeros((12, 1000), dtype=np.float32))
    assert not beats.any()
    statistics = rhythm_statistics(beats, RATE)
    assert statistics.shape == (1, STATISTICS) and not statistics.any()
    assert not any(part.any() for part in averaged_beat(record, beats))


def marks(times: list[float], seconds: float = 10.0) -> torch.Tensor:
    beats = torch.zeros(1, round(seconds * RATE), dtype=torch.bool)
    beats[0, [round(at * RATE) for at in times]] = True
    return beats


def test_statistics_are_arithmetic_on_the_intervals() -> None:
    beats = marks([1.0, 1.8, 2.3, 3.4, 4.2])  # intervals 0.8, 0.5, 1.1, 0.8: mean 0.8
    one = rhythm_statistics(beats, RATE)[0].double().numpy()
    unit = np.array([0.8, 0.5, 1.1, 0.8]) / 0.8
    steps = np.diff(unit)
    logs = np.diff(np.log(unit))
    wanted = [
        0.0,
        5 * math.sqrt(np.mean((unit - 1) ** 2)),
        5 * math.sqrt(np.mean(steps**2)),
        5 * math.sqrt(np.mean((unit[2:] - unit[:-2]) ** 2)),
        2 * logs.max(),
        2 * logs.min(),
        2 * (unit.max() - 1),
        3 * (1 - unit.min()),
        1.0,
        5 * np.abs(logs).mean(),
        1.0,
    ]
    np.testing.assert_allclose(one[:11], wanted, atol=1e-5)
    histogram = [np.exp(-0.5 * ((unit - centre) / 0.06) ** 2).mean() for centre in BINS]
    np.testing.assert_allclose(one[11:], histogram, atol=1e-5)


def test_flutter_of_intervals_tells_fibrillation_from_a_regular_rhythm_of_any_rate() -> None:
    generator = np.random.default_rng(1)
    irregular = 5 * float(np.sqrt(2)) * 0.2  # independent intervals of 20 % spread: successive differences of 28 %
    fibrillation = np.cumsum(generator.normal(0.7, 0.14, 13))
    steady = [rhythm_statistics(marks(list(np.arange(0.3, 9.9, rr))), RATE)[0, 2].item() for rr in (0.4, 0.7, 1.3)]
    assert max(steady) < 0.2 * irregular
    assert rhythm_statistics(marks([at for at in fibrillation if at < 9.9]), RATE)[0, 2].item() > 0.6 * irregular


def test_the_average_is_the_mean_of_the_windows_and_its_spread_their_deviation() -> None:
    generator = np.random.default_rng(2)
    signal = torch.from_numpy(generator.normal(size=(1, 3, 700)).astype(np.float32))
    recorded = torch.ones(1, 3, 700, dtype=torch.bool)
    recorded[0, 2] = False
    recorded[0, :, 600:] = False
    record = coarse(signal, recorded, RATE)
    beats = marks([0.1, 1.5, 2.6, 4.0, 5.7], seconds=7.0)  # the first and the last are cut
    mean, spread = averaged_beat(record, beats)
    before, after = beat_samples(RATE)
    rows = record.signal[0].double().numpy()
    level = np.zeros_like(rows)
    for at in range(600):
        near = slice(max(0, at - 60), min(600, at + 61))
        level[:, at] = rows[:, at] - rows[:, near].mean(axis=1)
    windows = np.stack([level[:2, at - before : at + after] for at in (150, 260, 400)])
    np.testing.assert_allclose(mean[0, :2], windows.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(spread[0, :2], windows.std(axis=0), atol=1e-3)
    assert not mean[0, 2].any() and not spread[0, 2].any()


@pytest.mark.parametrize("samples", [1, 3, 15, 60])
def test_a_record_shorter_than_a_beat_has_none_and_says_so_with_zeros(samples: int) -> None:
    signal = np.random.default_rng(3).normal(size=(12, samples)).astype(np.float32)
    record, beats = found(signal)
    assert rhythm_statistics(beats, RATE).isfinite().all()
    for part in averaged_beat(record, beats):
        assert part.shape == (1, 12, sum(beat_samples(RATE))) and not part.any()
