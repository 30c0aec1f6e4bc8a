"""A signal of ours reaches somebody else's model as its contract says: against the model called by hand.

The signal is a sine whose every sample is known at every rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.pretrain.export.opening import open_encoder
from cardialign.pretrain.export.outside.contract import Filter, OutsideContract
from cardialign.pretrain.export.outside.signals import filtered, model_input
from tests.support.outside_models import CONTRACT, REVERSED, Readout, write_torchscript

AMPLITUDES = np.linspace(0.3, 1.4, 12)


def sines(rate: float, seconds: float, leads: Sequence[str] = STANDARD_LEADS) -> np.ndarray:
    """(1, L, T) mV: 1 Hz, of another size and phase in every lead."""
    time = np.arange(round(rate * seconds)) / rate
    places = [STANDARD_LEADS.index(lead) for lead in leads]
    return np.stack([AMPLITUDES[k] * np.sin(2 * np.pi * (time + k / 30)) for k in places])[None].astype(np.float32)


def contract(**changes) -> OutsideContract:
    return OutsideContract.model_validate({**CONTRACT, **changes})


def given(rate: float, seconds: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    signal = sines(rate, seconds)
    return signal, np.ones((1, 12), dtype=bool), np.array([signal.shape[-1]]), rate


def test_leads_backwards_microvolts_another_rate_and_layout_give_the_model_called_by_hand(tmp_path: Path) -> None:
    encoder = open_encoder(write_torchscript(tmp_path / "readout.pt"))
    output = encoder.reader(SignalSpec(100, 2))(*given(100, 2)[:3])
    samples = torch.from_numpy(1000 * sines(50, 1, REVERSED)).transpose(1, 2)  # what it was trained on, made at 50 Hz
    with torch.no_grad():
        by_hand = Readout()(samples)
    np.testing.assert_allclose(output.features.numpy(), by_hand.numpy(), atol=2e-3)
    np.testing.assert_allclose(output.embedding.numpy(), F.normalize(by_hand, dim=1).numpy(), atol=2e-3)
    alone = encoder.embed(sines(50, 1), sampling_rate=50)
    np.testing.assert_allclose(alone, F.normalize(by_hand, dim=1).numpy(), atol=1e-5)
    forwards = open_encoder(write_torchscript(tmp_path / "forwards.pt", leads=list(STANDARD_LEADS)))
    assert np.abs(forwards.embed(sines(50, 1), sampling_rate=50) - alone).max() > 0.05, "the order of leads has no say"


@pytest.mark.parametrize("layout", ["leads-time", "time-leads", "leads-concatenated"])
def test_layouts_are_those_of_numpy(layout: str) -> None:
    found = model_input(contract(layout=layout, leads=["V2", "I"]), *given(50, 1))
    wanted = 1000 * sines(50, 1, ["V2", "I"])
    by_hand = {"leads-time": wanted, "time-leads": wanted.swapaxes(1, 2), "leads-concatenated": wanted.reshape(1, 100)}
    np.testing.assert_allclose(found, by_hand[layout], rtol=1e-6)
    assert found.dtype == np.float32 and model_input(contract(dtype="float64"), *given(50, 1)).dtype == np.float64


@pytest.mark.parametrize("method", ["centred", "minmax", "zscore", "lead-std"])
def test_normalisations_are_those_of_numpy_over_the_leads_that_are_read(method: str) -> None:
    chosen = contract(units="normalised", normalisation=method, layout="leads-time", leads=["aVF", "V6", "III"])
    found = model_input(chosen, *given(50, 1))
    x = sines(50, 1, ["aVF", "V6", "III"])
    by_hand = {
        "centred": x - x.mean(axis=2, keepdims=True),
        "minmax": (x - x.min()) / (x.max() - x.min()),
        "zscore": (x - x.mean()) / x.std(),
        "lead-std": (x - x.mean(axis=2, keepdims=True)) / x.std(axis=2, keepdims=True),
    }
    np.testing.assert_allclose(found, by_hand[method], atol=1e-5)


def test_a_filter_takes_off_what_it_says_and_leaves_the_rest_in_its_place() -> None:
    time = np.arange(5000) / 500
    beats, drift, mains = (
        np.sin(2 * np.pi * 8 * time),
        3 * np.sin(2 * np.pi * 0.1 * time),
        np.sin(2 * np.pi * 60 * time),
    )
    signal = np.tile(beats + drift + mains, (1, 12, 1))
    out = filtered(signal, np.array([5000]), Filter(high_pass=0.67, low_pass=40, order=3), 500)
    middle = slice(1500, 3500)
    left = 1 / (1 + (np.tan(np.pi * 60 / 500) / np.tan(np.pi * 40 / 500)) ** 6)  # of the mains: Butterworth, both ways
    assert 0.05 < left < 0.1
    np.testing.assert_allclose(out[0, 0, middle], (beats + left * mains)[middle], atol=0.01)
    padded = np.concatenate([signal[..., :2500], np.zeros((1, 12, 2500))], axis=-1)
    cut = filtered(padded, np.array([2500]), Filter(high_pass=0.67, low_pass=40, order=3), 500)
    assert not cut[..., 2500:].any(), "padding is heard"


def test_what_was_not_recorded_is_zero_or_refused() -> None:
    signal, mask, valid, rate = given(50, 1)
    mask[0, [1, 7]] = False
    signal[0, 1] = np.nan
    found = model_input(contract(layout="leads-time"), signal, mask, np.array([30]), rate)
    assert np.isfinite(found).all() and not found[0, [4, 10]].any() and not found[..., 30:].any()
    assert found[0, 0, :30].any()
    with pytest.raises(UserError, match=r"without lead V2, II, and .* missing_leads: refuse"):
        model_input(contract(missing_leads="refuse"), signal, mask, valid, rate)
    with pytest.raises(UserError, match=r"a signal of 0.6 s, and .* shorter: refuse at 1 s"):
        model_input(contract(shorter="refuse"), signal, mask, np.array([30]), rate)
    assert model_input(contract(leads=["I"], missing_leads="refuse"), signal, mask, valid, rate).shape == (1, 50, 1)


def test_a_user_and_a_shard_set_get_the_same_embedding_of_the_same_ecg(tmp_path: Path) -> None:
    chosen = {"filter": {"high_pass": 0.5, "low_pass": 20, "order": 2}, "leads": ["V1", "I"], "embedding_dim": 6}
    encoder = open_encoder(write_torchscript(tmp_path / "two.pt", TwoLeads(), **chosen))
    draw = np.random.default_rng(0)
    signal = np.cumsum(draw.normal(0, 0.05, (2, 12, 300)), axis=-1).astype(np.float32)
    of_set = encoder.reader(SignalSpec(100, 3))(signal, np.ones((2, 12), dtype=bool), np.full(2, 300))
    allowed = {"resample": True, "crop": True}
    np.testing.assert_allclose(encoder.embed(signal, sampling_rate=100, **allowed), of_set.embedding, atol=1e-5)
    two = encoder.embed(signal[:, [0, 6]], sampling_rate=100, leads=["I", "V1"], **allowed)
    np.testing.assert_allclose(two, of_set.embedding, atol=1e-5)
    with pytest.raises(UserError, match="missing here: II"):
        encoder.embed(signal[:, :1], sampling_rate=100, leads=["I"], **allowed)


class TwoLeads(torch.nn.Module):
    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return torch.cat([signal[:, ::20].flatten(1)], dim=1)
