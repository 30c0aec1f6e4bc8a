"""The sigmoid loss by hand, its learnt scale and bias, and a run that the collapse alarm leaves alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cardialign.data_shards.errors import UsageError
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.siglip import SigLip, one_logit_for_all
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.loop import train
from tests.support.processes import run_ranks
from tests.support.small_encoder import SPEC, small_config
from tests.support.tiny_shards import config_for, make_shards


def make(**values: Any) -> SigLip:
    method = create_method(small_config(method={"name": "siglip", **values}), SPEC)
    assert isinstance(method, SigLip)
    return method


def features(B: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ecg, text = (F.normalize(torch.randn(B, 5, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2))
    scale, bias = torch.tensor([1.7], dtype=torch.float64), torch.tensor([-2.5], dtype=torch.float64)
    return {
        name: x.requires_grad_() for name, x in (("ecg", ecg), ("text", text), ("log_scale", scale), ("bias", bias))
    }


@pytest.mark.parametrize("match", [False, True])
def test_the_loss_is_the_formula(match: bool) -> None:
    given, keys = features(), torch.tensor([1, 2, 3, 2, 5, 6])
    loss, metrics, chance = make(match_duplicates=match).loss(given, {"report_key": keys}, None)
    ecg, text = given["ecg"].detach().numpy(), given["text"].detach().numpy()
    total = 0.0
    for i in range(6):
        for j in range(6):
            logit = math.exp(1.7) * ecg[i] @ text[j] - 2.5
            sign = 1.0 if i == j or (match and keys[i] == keys[j]) else -1.0
            total -= math.log(1 / (1 + math.exp(-sign * logit)))
    assert loss.item() == pytest.approx(total / 6, rel=1e-6)
    assert metrics["bias"].item() == -2.5 and metrics["temperature"].item() == pytest.approx(math.exp(-1.7))
    assert (chance is None) == match
    loss.backward()
    assert all(x.grad is not None and float(x.grad.abs().max()) > 0 for x in given.values())


def test_it_starts_where_the_publication_starts() -> None:
    method = make()
    assert (
        float(method.logit_scale().detach()) == pytest.approx(math.log(10))
        and float(method.logit_bias.detach()) == -10.0
    )
    assert method.logit_bias.requires_grad and method.logit_scale.log_scale.requires_grad


def test_scale_and_bias_may_learn_faster_and_do_not_unless_asked() -> None:
    assert make().learning_rates(0) == {}
    rates = make(scale_rate=20).learning_rates(7)
    moved = {name for name, _ in make().named_parameters() if name.startswith(tuple(rates))}
    assert set(rates.values()) == {20} and moved == {"logit_scale.log_scale", "logit_bias"}


def test_chance_is_the_best_constant_logit() -> None:
    """Found by trying every constant: sum over a row of 1 positive and B - 1 negatives."""
    for B in (2, 13, 256):
        logits = np.linspace(-12, 3, 20001)
        losses = np.log1p(np.exp(-logits)) + (B - 1) * np.log1p(np.exp(logits))
        assert one_logit_for_all(B).loss == pytest.approx(losses.min(), abs=1e-6)


def test_a_temperature_outside_its_bounds_is_refused() -> None:
    with pytest.raises(UsageError, match=r"method: temperature 3 is outside temperature_min..temperature_max"):
        parse_config({"method": {"name": "siglip", "temperature": 3}})


def learn(rank: int, world: int, shards: Path, run_dir: Path) -> float:
    base = config_for(shards, steps=40, log_every=5, checkpoint_every=40, lead_dropout=0.0).resolved()
    alarm = {"patience_steps": 10}
    config = parse_config({**base, "method": {"name": "siglip"}, "collapse": alarm, "optimizer": {"lr": 1e-2}})
    return train(config, run_dir, NullObserver()).final_loss


@pytest.mark.processes
def test_a_healthy_run_falls_below_chance_and_is_not_stopped(tmp_path: Path) -> None:
    """It starts far above chance (bias -10) and stays there for longer than the alarm's patience, but it falls."""
    shards = make_shards(tmp_path / "shards")
    (final,) = run_ranks(1, learn, shards, tmp_path / "run", init=False, deadline=100)
    losses = [line["loss"] for line in read_trace(tmp_path / "run")]
    assert len(losses) == 40 and losses[0] > 1.5 * one_logit_for_all(13).loss
    assert final < one_logit_for_all(13).loss
