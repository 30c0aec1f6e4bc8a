"""Both losses by loops in float64, views that a step draws for a row, and that it learns on every topology."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import load_config
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.merl import Merl
from cardialign.pretrain.methods.parts.draws import Draws
from tests.support.learning import LearningData, learn, learning_data
from tests.support.small_encoder import SPEC, small_config
from tests.support.tiny_shards import config_for, make_shards
from tests.support.topology import check_topologies, run_topologies

__all__ = ["learning_data"]

B, E = 5, 8
RESNET = {"name": "resnet1d", "width": 4, "heads": 2, "embedding_dim": E}


def make(**method: Any) -> Merl:
    torch.manual_seed(0)
    made = create_method(small_config(encoder=RESNET, method={"name": "merl", **method}), SPEC)
    assert isinstance(made, Merl)
    return made.double()


class Bank:
    """Two records say the same."""

    embeddings = np.eye(4, 384, dtype=np.float32)

    def embedding(self, report_ids: np.ndarray) -> np.ndarray:
        return self.embeddings[report_ids]

    def report_keys(self, report_ids: np.ndarray) -> np.ndarray:
        return report_ids.astype(np.int64)


def batch(rows: int = B) -> Batch:
    signal = np.random.default_rng(0).normal(size=(rows, 12, 200)).astype(np.float32)
    at, report = np.arange(rows), np.array([0, 1, 2, 1, 3])[:rows]
    mask, valid = np.ones((rows, 12), bool), np.full(rows, 200, np.int32)
    mask[0, 3] = False
    return Batch(1, at, signal, mask, valid, report, np.zeros(rows, np.float32), np.zeros(rows, np.int8), at)


def one_direction(rows: list[list[float]], others: list[list[float]]) -> float:
    """Mean over rows of -log e^{row.own / .07} / sum_j e^{row.other_j / .07}."""
    total = 0.0
    for i, row in enumerate(rows):
        terms = [math.exp(sum(a * b for a, b in zip(row, other, strict=True)) / 0.07) for other in others]
        total -= math.log(terms[i] / sum(terms))
    return total / len(rows)


@pytest.mark.parametrize("size", [B, 1])
def test_the_loss_is_the_sum_of_both_directions_of_both_terms(size: int) -> None:
    generator = torch.Generator().manual_seed(2)
    names = ("ecg", "text", "first", "second")
    given = {
        name: F.normalize(torch.randn(size, 6, generator=generator, dtype=torch.float64), dim=1).requires_grad_()
        for name in names
    }
    if size > 1:
        with torch.no_grad():
            given["text"][3] = given["text"][1]  # an equal report is a negative, as published
    loss, metrics, chance = make().loss(given, {"report_key": torch.arange(size)}, None)
    z, t, u, v = (given[name].detach().tolist() for name in names)
    cma, uma = one_direction(z, t) + one_direction(t, z), one_direction(u, v) + one_direction(v, u)
    assert loss.item() == pytest.approx(cma + uma, rel=1e-6, abs=1e-9)
    assert metrics["cma_loss"].item() == pytest.approx(cma, rel=1e-6, abs=1e-9)
    assert chance is not None and chance.loss == pytest.approx(4 * math.log(8)) and chance.formula == "4 ln B"
    gradients = torch.autograd.grad(loss, list(given.values()))
    by_hand = torch.zeros((), dtype=torch.float64)
    for a, b in ((given["ecg"], given["text"]), (given["first"], given["second"])):
        for rows, others in ((a, b), (b, a)):
            by_hand = by_hand - sum(torch.log_softmax(rows[i] @ others.T / 0.07, 0)[i] for i in range(size)) / size
    for found, wanted in zip(gradients, torch.autograd.grad(by_hand, list(given.values())), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-9)


def test_the_views_are_two_heads_on_the_pooled_feature_each_behind_its_own_dropout() -> None:
    method = make(view_dropout=0.5)
    inputs = method.inputs(batch(), Bank(), Draws(0, 1, slice(0, B)))
    given = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    found = method(given)
    features = method.ecg(given["signal"], given["lead_mask"]).features.detach()
    for k, name in enumerate(("first", "second")):
        head = method.views[k]
        assert isinstance(head, torch.nn.Linear)
        weight, bias = head.weight.detach(), head.bias.detach()
        for b in range(B):
            row = [2.0 * bool(inputs["kept"][b, k, e]) * float(weight[e] @ features[b] + bias[e]) for e in range(E)]
            length = math.sqrt(sum(x * x for x in row))
            np.testing.assert_allclose(found[name][b].detach().numpy(), np.array(row) / length, atol=1e-6)


def test_a_view_belongs_to_its_row_and_its_step() -> None:
    method, whole = make(), Draws(3, 5, slice(0, B))
    kept = method.inputs(batch(), Bank(), whole)["kept"]
    for world in (2, 5):
        for rank in range(world):
            rows = local_slice(B, rank, world)
            part = method.inputs(batch(rows.stop - rows.start), Bank(), Draws(3, 5, rows))["kept"]
            assert torch.equal(part, kept[rows])
    assert not torch.equal(kept, method.inputs(batch(), Bank(), Draws(3, 6, slice(0, B)))["kept"])
    assert not torch.equal(kept[:, 0], kept[:, 1])
    many = make(view_dropout=0.3).inputs(batch(), Bank(), Draws(0, 0, slice(0, B)))["kept"]
    assert many.shape == (B, 2, E) and 0.4 < many.float().mean() < 0.95


@pytest.mark.parametrize("recipe", ["merl", "merl-published", "merl-published-vit"])
def test_the_recipes_are_the_publication_where_they_say_so(recipe: str) -> None:
    config = load_config(recipe)
    method = config.method.model_dump()
    assert (method["temperature"], method["view_dropout"], config.data.normalisation) == (0.07, 0.1, "minmax")
    if recipe != "merl":
        assert (config.optimizer.lr, config.optimizer.weight_decay) == (2e-4, 1e-5)
        assert (config.training.global_batch, config.training.epochs, config.text.max_tokens) == (4096, 50, 256)


@pytest.mark.slow
@pytest.mark.processes
def test_a_step_is_the_same_on_every_topology(tmp_path: Path) -> None:
    values = config_for(make_shards(tmp_path / "shards")).resolved()
    run_topologies({**values, "encoder": RESNET, "method": {"name": "merl"}}, tmp_path)
    check_topologies(tmp_path, ["loss", "cma_loss", "uma_loss", "grad_norm"], rtol=2e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_learns_what_the_reports_say(learning_data: LearningData, tmp_path: Path) -> None:
    changes = {"encoder.width": 8, "training.epochs": 8, "training.global_batch": 32, "training.micro_batch": None}
    learnt = learn("merl", learning_data, tmp_path / "run", changes, deadline=600)
    assert learnt.zero_shot.difference.low > 0.2
