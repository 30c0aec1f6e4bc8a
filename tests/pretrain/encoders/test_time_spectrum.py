"""The spectrum is that of physics, and the encoder keeps its patches, its domains and its places apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.encoders.base import create_encoder
from cardialign.pretrain.encoders.time_spectrum import TimeSpectrum, spectrum

T, RATE = 200, 100.0


def make(**values: Any) -> TimeSpectrum:
    torch.manual_seed(0)
    small = {"name": "time_spectrum", "width": 16, "depth": 1, "heads": 2, "patch_ms": 200, "embedding_dim": 8}
    found = create_encoder(parse_config({"encoder": {**small, **values}}).encoder, SignalSpec(RATE, T / RATE))
    assert isinstance(found, TimeSpectrum)
    return found.double().eval()


def test_a_wave_has_its_frequency_its_size_and_its_phase() -> None:
    """A cos(2 pi f t + p) of whole cycles: A sqrt(T) / 2 at f, and p; of nothing else anything, and no rounding."""
    time = torch.arange(T, dtype=torch.float64) / RATE
    wave = -0.3 + 0.8 * torch.cos(2 * torch.pi * 7 * time + 0.25 * torch.pi)
    magnitude, phase = spectrum(wave.float())
    assert magnitude.shape == phase.shape == (T // 2,) and magnitude.dtype == torch.float32
    expected, turns = np.zeros(T // 2), np.zeros(T // 2)
    expected[14], expected[0], turns[14], turns[0] = 0.8 * T**0.5 / 2, 0.3 * T**0.5, 0.25, 1.0
    np.testing.assert_allclose(magnitude, expected, atol=1e-6)
    np.testing.assert_allclose(phase, turns, atol=1e-6)


def test_the_power_is_that_of_the_samples_and_silence_has_none() -> None:
    signal = torch.randn(3, 12, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signal[1, 4] = 0.0
    signal.requires_grad_()
    magnitude, phase = spectrum(signal)
    nyquist = (signal * (-1.0) ** torch.arange(T)).sum(dim=-1).square() / T
    power = 2 * magnitude[..., 1:].square().sum(dim=-1) + magnitude[..., 0].square() + nyquist
    torch.testing.assert_close(power, signal.square().sum(dim=-1))
    assert not magnitude[1, 4].any() and not phase[1, 4].any() and phase.abs().max() <= 1
    (magnitude.sum() + phase.sum()).backward()
    assert signal.grad is not None and signal.grad.isfinite().all()


def test_values_are_samples_magnitudes_and_phases_lead_after_lead() -> None:
    encoder, leads = make(), torch.ones(2, 12, dtype=torch.bool)
    signal = torch.randn(2, 12, T, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    values = encoder.patch_values(signal, leads)
    assert encoder.counts(T) == (10, 5, 5) and values.shape == (2, 20, 240)
    found = np.fft.fft(signal.numpy().astype(np.float64), norm="ortho")
    for patch, part, of in ((3, 3, signal.numpy()), (12, 2, np.abs(found)), (19, 4, np.angle(found) / np.pi)):
        for lead in (0, 11):
            mine = values[1, patch, 20 * lead : 20 * lead + 20]
            np.testing.assert_allclose(mine, of[1, lead, 20 * part : 20 * part + 20], rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_domains_are_told_apart_and_frequencies_keep_their_places_for_another_length() -> None:
    encoder, leads = make(), torch.ones(1, 12, dtype=torch.bool)
    whole = encoder.embed_patches(torch.zeros(1, 12, T), leads)
    half = encoder.embed_patches(torch.zeros(1, 12, T // 2), leads)
    assert whole.seconds[3:13].tolist() == pytest.approx([0.1 + 0.2 * k for k in range(10)])
    assert whole.seconds[13:18].tolist() == whole.seconds[18:].tolist()
    # 20 of 100 frequencies of 0.5 Hz: 10 Hz; in half the record 20 of 1 Hz, whose middle is where 10 Hz was.
    assert half.seconds[8:10].tolist() == pytest.approx([0.2, 0.6]) and whole.seconds[13] == pytest.approx(0.1)
    assert not torch.allclose(whole.tokens[0, 3], whole.tokens[0, 13])


def test_its_tokens_can_be_exported_with_a_dynamic_batch() -> None:
    """The transformer behind them is traced with those of the other encoders; here is what is its own."""

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = make(patch_ms=1000).float()

        def forward(self, signal: torch.Tensor, leads: torch.Tensor) -> torch.Tensor:
            return self.encoder.embed_patches(signal, leads).tokens

    size, leads = torch.export.Dim("batch", min=1, max=64), torch.ones(4, 12, dtype=torch.bool)
    signal = torch.randn(4, 12, T, generator=torch.Generator().manual_seed(2))
    program = torch.export.export(Tokens(), (signal, leads), dynamic_shapes=({0: size}, {0: size})).module()
    torch.testing.assert_close(program(signal[:3], leads[:3]), Tokens()(signal[:3], leads[:3]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_ms": 1010}, "1010 is longer than half the record (200 samples at 100 Hz) choose 10 to 1000"),
        ({"patch_ms": 1}, "shorter than one sample"),
        ({"width": 12, "patch_layer": "resnet18"}, "no multiple of 8"),
        ({"heads": 3}, "not a multiple of heads 3"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(**values)
    assert message in f"{caught.value.problem} {caught.value.remedy}"
