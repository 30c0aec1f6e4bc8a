"""Random kernels: a seed decides them, only what was recorded counts, and voltage and rhythm are in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.evaluation.probing.random_kernels import RandomKernels

SPEC = SignalSpec(100, 10)


def beats(seconds_between: float, millivolts: float = 1.0, rate: float = 100.0) -> torch.Tensor:
    """Twelve leads of narrow triangles."""
    time = np.arange(int(10 * rate)) / rate
    distance = np.abs((time - 0.4 + seconds_between / 2) % seconds_between - seconds_between / 2)
    wave = millivolts * np.clip(1 - distance / 0.05, 0, None)
    return torch.from_numpy(np.broadcast_to(wave, (1, 12, len(time))).astype(np.float32).copy())


def features(signal: torch.Tensor, spec: SignalSpec = SPEC, valid: int | None = None) -> np.ndarray:
    leads = torch.ones(len(signal), 12, dtype=torch.bool)
    return RandomKernels(spec, 200, seed=1).features(signal, leads, torch.tensor([valid or signal.shape[-1]]))


def test_a_seed_decides_every_kernel() -> None:
    first, again = features(beats(0.8)), features(beats(0.8))
    np.testing.assert_array_equal(first, again)
    leads = torch.ones(1, 12, dtype=torch.bool)
    other = RandomKernels(SPEC, 200, seed=2).features(beats(0.8), leads, torch.tensor([1000]))
    assert first.shape == other.shape == (1, 400) and not np.array_equal(first, other)


def test_the_largest_response_is_that_of_a_sum_on_paper() -> None:
    """One kernel at a time: a unit impulse in one lead shows the kernel's largest weight above its offset."""
    kernels = RandomKernels(SPEC, 40, seed=3)
    signal = torch.zeros(1, 12, 1000)
    signal[0, 4, 500] = 0.2  # one unit
    found = kernels.features(signal, torch.ones(1, 12, dtype=torch.bool), torch.tensor([1000]))[0]
    at = 0
    for _, weights, offsets in kernels.banks:
        expected = (weights[:, 4].amax(dim=1).clamp_min(0) + offsets).numpy()
        np.testing.assert_allclose(found[at : at + len(offsets)], expected, atol=1e-6)
        at += 2 * len(offsets)


def test_what_was_not_recorded_changes_nothing() -> None:
    leads = torch.ones(1, 12, dtype=torch.bool)
    leads[0, 3] = False
    clean, noisy = beats(0.8), beats(0.8)
    clean[0, 3], clean[0, :, 700:] = 0.0, 0.0
    noisy[0, 3], noisy[0, :, 700:] = torch.nan, 99.0
    kernels, valid = RandomKernels(SPEC, 200), torch.tensor([700])
    np.testing.assert_array_equal(kernels.features(clean, leads, valid), kernels.features(noisy, leads, valid))
    nothing = kernels.features(clean, leads & False, torch.tensor([0]))
    assert np.isfinite(nothing).all()


def test_voltage_and_rate_are_seen() -> None:
    normal = features(beats(0.8))
    assert np.abs(features(beats(0.8, millivolts=0.3)) - normal).max() > 0.5
    assert np.abs(features(beats(0.4)) - normal).max() > 0.01


@pytest.mark.parametrize("rate", [250.0, 500.0])
def test_another_sampling_rate_shows_the_same_waves(rate: float) -> None:
    at_100, other = features(beats(0.8)), features(beats(0.8, rate=rate), SignalSpec(rate, 10))
    assert other.shape == at_100.shape
    assert np.corrcoef(at_100[0], other[0])[0, 1] > (
        0.99 if rate == 500 else 0.95
    )  # at 250 Hz a step is 8 ms instead of 10
