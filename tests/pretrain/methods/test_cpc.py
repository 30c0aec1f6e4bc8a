"""The loss is the formula, in value and gradient; no guess has heard what it tells; every topology gives one run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.cpc import Cpc
from cardialign.pretrain.methods.parts.draws import Draws
from tests.pretrain.methods import test_jepa
from tests.support.small_encoder import SPEC, small_config
from tests.support.tiny_shards import config_for, make_shards
from tests.support.topology import check_topologies, run_topologies, trace

ENCODER = {"name": "s4", "width": 8, "depth": 1, "state": 4, "token_ms": 100, "embedding_dim": 8}
FORWARD = {**ENCODER, "direction": "forward"}
METHOD = {"name": "cpc", "steps": 3, "negatives": 5}
B, N = 4, 20


def make() -> Cpc:
    torch.manual_seed(0)
    made = create_method(small_config(encoder=FORWARD, method=METHOD), SPEC)
    assert isinstance(made, Cpc)
    return made.double().eval()


def batch() -> Batch:
    generator, rows = np.random.default_rng(0), np.arange(B)
    mask = np.ones((B, 12), dtype=bool)
    mask[1, 4:], mask[3] = False, False
    valid = np.full(B, 200, dtype=np.int32)
    valid[2] = 95
    signal = generator.normal(size=(B, 12, 200)).astype(np.float32)
    return Batch(1, rows, signal, mask, valid, rows, np.zeros(B, np.float32), np.zeros(B, np.int8), rows)


def by_hand(method: Cpc, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Pair after pair, as the formula stands."""
    tokens, mask = method.ecg.embed_tokens(inputs["signal"], inputs["lead_mask"], inputs["valid_samples"])
    states = method.ecg.encode_tokens(tokens, mask)
    errors = []
    for row, recorded in enumerate((20, 20, 10, 0)):  # 95 of 200 samples are ten tokens; the last has no lead
        for t in range(recorded):
            for k in (1, 2, 3):
                if t + k < recorded:
                    guess = method.ahead[k - 1].weight @ states[row, t]
                    others = [n for n in inputs["negatives"][row].tolist() if n != t + k]
                    scores = torch.stack([guess @ tokens[row, n] for n in (t + k, *others)])
                    errors.append(scores.exp().sum().log() - scores[0])
    return torch.stack(errors).mean(), len(errors)


def test_the_loss_and_its_gradients_are_the_formula() -> None:
    method = make()
    inputs = method.inputs(batch(), None, Draws(0, 1, slice(0, B)))
    loss = method.loss(method(inputs), inputs, None)
    expected, pairs = by_hand(method, inputs)
    assert pairs == 2 * (19 + 18 + 17) + 9 + 8 + 7 == int(method.counts(inputs)["foretold"].sum())
    assert loss.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert loss.chance is not None and loss.chance.loss == pytest.approx(math.log(6))
    learns = [*method.ahead.parameters(), *(p for n, p in method.ecg.named_parameters() if "projection" not in n)]
    found, wanted = (torch.autograd.grad(each, learns) for each in (loss.loss, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
    assert any(gradient.abs().max() > 1e-4 for gradient in found)


def test_negatives_are_recorded_places_and_belong_to_the_row() -> None:
    method = make()
    whole = method.inputs(batch(), None, Draws(0, 1, slice(0, B)))["negatives"]
    assert (whole[2] < 10).all() and (whole[:2] < N).all() and len(set(whole[0].tolist())) > 1
    full = batch()
    names = ("rows", "signal", "lead_mask", "valid_samples", "report", "age_years", "sex")
    part = Batch(1, *(getattr(full, n)[1:3] for n in names), full.rows)
    assert torch.equal(method.inputs(part, None, Draws(0, 1, slice(1, 3)))["negatives"], whole[1:3])


@torch.no_grad()
def test_a_state_has_heard_nothing_of_what_comes() -> None:
    method = make()
    inputs = method.inputs(batch(), None, Draws(0, 1, slice(0, B)))
    later = inputs["signal"].clone()
    later[..., 100:] += 1.0
    states = []
    for signal in (inputs["signal"], later):
        states.append(method.ecg.encode_tokens(*method.ecg.embed_tokens(signal, inputs["lead_mask"])))
    torch.testing.assert_close(states[0][:, :10], states[1][:, :10], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(states[0][:, 10:], states[1][:, 10:], atol=1e-2)


@pytest.mark.parametrize(
    ("encoder", "method", "message"),
    [
        (ENCODER, {}, "encoder.direction to forward"),
        ({"name": "resnet1d", "width": 8}, {}, "set encoder.name to s4"),
        (FORWARD, {"steps": 20}, "looks beyond the 20 tokens"),
    ],
)
def test_what_cannot_foretell_is_refused(encoder: dict[str, Any], method: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        create_method(small_config(encoder=encoder, method={**METHOD, **method}), SPEC)
    assert message in f"{caught.value.problem} {caught.value.remedy}"


RUNS = {"cpc": (FORWARD, METHOD), "jepa": (test_jepa.ENCODER, test_jepa.METHOD)}


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", RUNS)
def test_every_topology_and_a_stop_give_the_same_run(name: str, tmp_path: Path) -> None:
    base = config_for(make_shards(tmp_path / "shards")).resolved()
    encoder, method = RUNS[name]
    values = {**base, "encoder": encoder, "method": method, "data": {**base["data"], "normalisation": "none"}}
    run_topologies(values, tmp_path)
    check_topologies(tmp_path, ["loss", "grad_norm"], rtol=2e-4)
    assert trace(tmp_path / "whole")[-1] < trace(tmp_path / "whole")[0]
