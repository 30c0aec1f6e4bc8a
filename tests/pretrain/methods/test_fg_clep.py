"""FG-CLEP against its formula in loops of plain numbers, and on every topology.

That it learns is shown with what it learns for: tests/cluster/completion/test_end_to_end.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cardialign.data_shards.errors import DataError
from cardialign.pretrain.config import load_config, parse_config
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.fg_clep import FgClep
from cardialign.pretrain.training.data import open_data
from tests.support.small_encoder import SPEC, small_config
from tests.support.tiny_shards import RECORDS, config_for, make_shards
from tests.support.topology import check_topologies, run_topologies

Rows = list[list[float]]


def make(**values: Any) -> FgClep:
    method = create_method(small_config(method={"name": "fg_clep", **values}), SPEC)
    assert isinstance(method, FgClep)
    return method


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def by_hand(raw_ecg: Rows, raw_text: Rows, numbers: tuple[float, float, float], frozen: Rows | None) -> float:
    """The formula; frozen: rows that S is made of where it is a constant, None where it moves with the texts."""
    log_scale, bias, weight = numbers
    ecg, text = [unit(row) for row in raw_ecg], [unit(row) for row in raw_text]
    alike = text if frozen is None else [unit(row) for row in frozen]
    B, sigmoid, apart = len(ecg), 0.0, 0.0
    for i in range(B):
        for j in range(B):
            cosine = dot(ecg[i], text[j])
            z = 1.0 if i == j else -1.0
            sigmoid += math.log1p(math.exp(-z * (math.exp(log_scale) * cosine + bias)))
            apart += abs(cosine - (1.0 if i == j and frozen is not None else dot(alike[i], alike[j])))
    return sigmoid / B + weight * apart / B


def slope(f: Any, x: Rows, i: int, j: int, h: float = 1e-6) -> float:
    """Of f at x in the direction of one number."""

    def at(step: float) -> float:
        moved = [list(row) for row in x]
        moved[i][j] += step
        return f(moved)

    return (at(h) - at(-h)) / (2 * h)


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
def test_loss_and_gradients_are_the_formula(stop: bool, rows: int) -> None:
    """Two of the five reports are equal: S = 1 there, whatever the stop says."""
    generator = torch.Generator().manual_seed(2)
    ecg, text = (torch.randn(rows, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    keys = torch.arange(rows)
    if rows == 5:
        text = torch.cat([text[:4], text[1:2]]).detach().requires_grad_()
        keys[4] = 1
    scale, bias = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (1.7, -2.5))
    features = {"ecg": F.normalize(ecg, dim=1), "text": F.normalize(text, dim=1), "log_scale": scale, "bias": bias}
    given = make(mitigation=0.8, stop_gradient=stop).loss(features, {"report_key": keys}, None)
    given.loss.backward()

    e, t, numbers = ecg.detach().tolist(), text.detach().tolist(), (1.7, -2.5, 0.8)
    frozen = t if stop else None
    assert given.loss.item() == pytest.approx(by_hand(e, t, numbers, frozen), rel=1e-6)
    assert given.chance is None and given.metrics["loss"].item() == pytest.approx(given.loss.item())
    together = given.metrics["sigmoid_loss"] + 0.8 * given.metrics["mitigation_loss"]
    assert together.item() == pytest.approx(given.loss.item(), rel=1e-6)
    for i in range(rows):
        for j in range(4):
            assert ecg.grad is not None and text.grad is not None
            wanted = slope(lambda x: by_hand(x, t, numbers, frozen), e, i, j)
            assert ecg.grad[i, j].item() == pytest.approx(wanted, abs=2e-6)
            wanted = slope(lambda x: by_hand(e, x, numbers, frozen), t, i, j)
            assert text.grad[i, j].item() == pytest.approx(wanted, abs=2e-6)
    for leaf, k in ((scale, 0), (bias, 1)):
        up, down = (tuple(n + s * (m == k) for m, n in enumerate(numbers)) for s in (1e-6, -1e-6))
        wanted = (by_hand(e, t, up, frozen) - by_hand(e, t, down, frozen)) / 2e-6  # type: ignore[arg-type]
        assert leaf.grad is not None and leaf.grad.item() == pytest.approx(wanted, abs=2e-6)


def test_it_starts_where_the_publication_starts_and_says_so() -> None:
    method = make()
    assert float(method.logit_scale().detach()) == pytest.approx(math.log(10))
    assert (float(method.logit_bias.detach()), method.mitigation, method.stop_gradient) == (-10.0, 0.5, True)
    published = load_config("fg-clep-published")
    assert (published.encoder.name, published.text.encoder) == ("resnet1d", "emilyalsentzer/Bio_ClinicalBERT")
    assert (published.optimizer.lr, published.optimizer.weight_decay) == (2e-5, 1e-4)
    assert (published.training.global_batch, published.training.epochs) == (100, 10)
    second = load_config("fg-clep-published-stage-2")
    assert second.training.epochs == 3 and second.encoder == published.encoder and second.method == published.method


def test_lambda_zero_is_siglip_with_its_alarm() -> None:
    generator = torch.Generator().manual_seed(1)
    ecg, text = (F.normalize(torch.randn(6, 5, generator=generator), dim=1) for _ in range(2))
    features = {"ecg": ecg, "text": text, "log_scale": torch.tensor([2.0]), "bias": torch.tensor([-3.0])}
    inputs = {"report_key": torch.arange(6)}
    plain = create_method(small_config(method={"name": "siglip"}), SPEC).loss(features, inputs, None)
    ours = make(mitigation=0.0).loss(features, inputs, None)
    assert ours.loss.item() == plain.loss.item() and ours.chance == plain.chance


def test_a_set_without_reports_is_refused(tmp_path: Path) -> None:
    base = config_for(make_shards(tmp_path / "shards", silent=RECORDS)).resolved()
    with pytest.raises(DataError, match=f"none of its {RECORDS} records has a report, and method fg_clep"):
        open_data(parse_config({**base, "method": {"name": "fg_clep"}}))


@pytest.mark.slow
@pytest.mark.processes
def test_the_topology_changes_nothing(tmp_path: Path) -> None:
    base = config_for(make_shards(tmp_path / "shards")).resolved()
    method = {"name": "fg_clep", "stop_gradient": False, "chunk": 3}
    run_topologies({**base, "method": method}, tmp_path)
    check_topologies(tmp_path, ["loss", "sigmoid_loss", "mitigation_loss"])
