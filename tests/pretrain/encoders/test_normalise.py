"""Normalisation on the device: each method's definition, on what was recorded only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cardialign.pretrain.encoders.blocks.normalise import NORMALISATIONS, normalise


def record() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(3, 12, 50, generator=generator) * torch.linspace(0.1, 2, 12)[None, :, None] + 0.3
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[1, [2, 7]] = False
    signal[1, 2], signal[1, 7] = torch.nan, 1e6
    valid = torch.tensor([50, 31, 50])
    signal[1, :, 31:] = -99.0
    return signal, mask, valid


def recorded(signal: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor, i: int) -> np.ndarray:
    return signal[i, mask[i], : int(valid[i])].double().numpy()


@pytest.mark.parametrize("method", NORMALISATIONS)
def test_it_equals_its_definition_and_leaves_zero_where_nothing_was_recorded(method: str) -> None:
    signal, mask, valid = record()
    out = normalise(signal, mask, valid, method)
    for i in range(3):
        x = recorded(signal, mask, valid, i)
        expected = {
            "none": x,
            "centred": x - x.mean(1, keepdims=True),
            "minmax": (x - x.min()) / (x.max() - x.min()),
            "zscore": (x - x.mean()) / x.std(),
            "lead-std": (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True),
        }[method]
        np.testing.assert_allclose(recorded(out, mask, valid, i), expected, atol=1e-5)
        assert out[i, ~mask[i]].abs().sum() == 0 and out[i, :, int(valid[i]) :].abs().sum() == 0


@pytest.mark.parametrize("method", NORMALISATIONS)
def test_an_offset_of_each_lead_is_taken_off_by_two_and_one_of_all_leads_by_all_but_none(method: str) -> None:
    signal, mask, valid = record()
    plain = normalise(signal, mask, valid, method)
    shared = normalise(signal + 0.5, mask, valid, method)
    own = normalise(signal + torch.linspace(-0.5, 0.5, 12)[None, :, None], mask, valid, method)
    assert torch.allclose(plain, shared, atol=1e-5) == (method != "none")
    assert torch.allclose(plain, own, atol=1e-5) == (method in ("centred", "lead-std"))


def test_flat_leads_and_empty_records_stay_finite() -> None:
    for method in NORMALISATIONS:
        out = normalise(
            torch.full((2, 12, 20), 0.7), torch.tensor([[True] * 12, [False] * 12]), torch.tensor([20, 0]), method
        )
        assert torch.isfinite(out).all() and out[1].abs().sum() == 0
        if method != "none":
            assert out[0].abs().max() == 0


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="known: none, centred, minmax, zscore, lead-std"):
        normalise(torch.zeros(1, 12, 4), torch.ones(1, 12, dtype=torch.bool), None, "max")
