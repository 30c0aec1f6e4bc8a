"""Methods of two views: losses and gradients by hand in float64, teachers by hand, the same step on every topology."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import load_config, parse_config
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.methods.base import Method, create_method
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.teacher import follow, rising, teacher_of
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.loop import train
from tests.pretrain.methods.test_views import batch
from tests.support.processes import run_ranks
from tests.support.small_encoder import small_config
from tests.support.tiny_shards import config_for, make_shards
from tests.support.topology import check_topologies, run_topologies, trace

B = 24
HEADS: dict[str, dict[str, Any]] = {
    "barlow_twins": {"projection_dim": 6},
    "byol": {"hidden_dim": 16, "projection_dim": 8, "momentum": 0.9},
    "moco_v3": {"hidden_dim": 16, "projection_dim": 8, "momentum": 0.9},
    "simclr": {"projection_dim": 8},
    "simsiam": {"projection_dim": 16, "predictor_dim": 4},
}
TRAINED = {
    **HEADS,
    "astcl": {"hidden_dim": 16, "projection_dim": 8, "momentum": 0.9},
    "clocs": {"pairs": "cmsmlc", "leads": ["II", "V2"]},
    "ts_tcc": {"steps": 3, "width": 8, "depth": 1, "heads": 2, "hidden": 8, "projection_dim": 8},
}
"""Clocs draws nothing; its rows, and those of astcl, look at whose the others are: those of a patient may meet."""
LEARNS = {**TRAINED, "clocs": {"pairs": "cmsc"}}
"""A patient's two records are no more alike than others here: where they meet often, nothing is left to tell apart."""
OF_PATIENTS = {"astcl": "patient", "clocs": "same_patient"}
ENCODERS = {"ts_tcc": {"name": "resnet1d", "width": 4, "pooling": "mean", "embedding_dim": 16}}


def make(name: str, **more: Any) -> Method:
    torch.manual_seed(0)
    config = small_config(method={"name": name, **HEADS[name], **more})
    return create_method(config, SignalSpec(100, 5)).double()


def pair(seed: int, width: int, rows: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, width, generator=generator, dtype=torch.float64).requires_grad_()


def agree(loss: torch.Tensor, by_hand: torch.Tensor, of: torch.Tensor) -> None:
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-9)
    found, wanted = (torch.autograd.grad(each, of)[0] for each in (loss, by_hand))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-10)


def test_barlow_twins_loss_is_that_of_the_correlations() -> None:
    z = pair(1, 6)
    loss, metrics, chance = make("barlow_twins", redundancy=0.03).loss({"projected": z}, {}, None)
    total = torch.zeros((), dtype=torch.float64)
    columns = [[z[:, view, i] for i in range(6)] for view in range(2)]
    standard = [[(c - c.mean()) / (c.var(unbiased=False) + 1e-5).sqrt() for c in each] for each in columns]
    for i in range(6):
        for j in range(6):
            c = (standard[0][i] * standard[1][j]).mean()
            total = total + ((1 - c) ** 2 if i == j else 0.03 * c**2)
    agree(loss, total, z)
    assert chance is None and metrics["invariance"] > 0 and metrics["redundancy"] > 0
    same = z.detach()[:, :1].expand(-1, 2, -1)
    assert make("barlow_twins").loss({"projected": same}, {}, None).metrics["invariance"] < 1e-6


def test_moco_v3_loss_is_the_cross_entropy_of_queries_with_the_other_views_keys() -> None:
    q, k = pair(2, 8), F.normalize(pair(3, 8), dim=-1)
    loss, _, chance = make("moco_v3", temperature=0.3).loss({"queries": q, "keys": k}, {}, None)
    total = torch.zeros((), dtype=torch.float64)
    for view in range(2):
        for i in range(7):
            terms = [torch.exp(q[i, view] @ k[j, 1 - view] / 0.3) for j in range(7)]
            total = total - 2 * 0.3 * torch.log(terms[i] / torch.stack(terms).sum()) / 7
    agree(loss, total, q)
    assert chance is not None and chance.loss == pytest.approx(4 * 0.3 * math.log(8))


def foretold(method: Method) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    inputs = method.inputs(batch(), None, Draws(1, 2, slice(0, B)))
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    return inputs, dict(method(inputs))


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(dim=1) / (a.square().sum(dim=1).sqrt() * b.square().sum(dim=1).sqrt())


@pytest.mark.parametrize("name", ["simsiam", "byol"])
def test_a_view_foretells_the_other_which_gets_no_gradient(name: str) -> None:
    method: Any = make(name)
    if name == "byol":  # a teacher that has gone another way
        for buffer in [*method.teacher.buffers(), *method.teacher_projector.buffers()]:
            if buffer.is_floating_point():
                buffer.mul_(1.05)
    inputs, features = foretold(method)
    loss = method.loss(features, inputs, None).loss
    views = [method.seen(inputs, view) for view in ("first", "second")]
    z = [method.projector(view.embedding) for view in views]
    told = [method.predictor(each) for each in z]
    if name == "simsiam":
        total = sum(-0.5 * cosine(told[k], z[1 - k].detach()).mean() for k in range(2))
    else:
        seen = [method.seen(inputs, view, method.teacher).embedding for view in ("first", "second")]
        wanted = [method.teacher_projector(each).detach() for each in seen]
        unit = [[F.normalize(x, dim=1) for x in each] for each in (told, wanted)]
        total = sum((unit[0][k] - unit[1][1 - k]).square().sum(dim=1).mean() for k in range(2))
    assert torch.is_tensor(total) and loss.item() == pytest.approx(total.item(), rel=1e-5)
    parameters = [*method.ecg.parameters(), *method.projector.parameters(), *method.predictor.parameters()]
    found, by_hand = (torch.autograd.grad(each, parameters, allow_unused=True) for each in (loss, total))
    for a, b in zip(found, by_hand, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert torch.equal(method.counts(inputs)["foretold"], features["foretold"][:, 1].float())


def test_a_teacher_follows_slowly_learns_nothing_and_is_in_the_state() -> None:
    student = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    teacher = teacher_of(student)
    assert not list(teacher.parameters()) and set(teacher.state_dict()) == set(student.state_dict())
    by_hand = {name: tensor.double().numpy().copy() for name, tensor in teacher.state_dict().items()}
    for step in range(4):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        m = rising(0.9, step, 4)
        follow(teacher, dict(student.named_parameters()), m)
        for name, parameter in student.named_parameters():
            by_hand[name] = m * by_hand[name] + (1 - m) * parameter.detach().double().numpy()
            np.testing.assert_allclose(teacher.state_dict()[name].numpy(), by_hand[name], rtol=1e-5, atol=1e-6)
    assert [rising(0.9, step, 4) for step in (0, 2, 4, 9)] == pytest.approx([0.9, 0.95, 1.0, 1.0])
    assert rising(0.9, 7, None) == 0.9


@pytest.mark.parametrize("name", HEADS)
def test_two_views_need_no_report_and_a_micro_batch_is_told_when_it_decides(name: str) -> None:
    for size in ("tiny", "published"):
        config = load_config(f"{name.replace('_', '-')}-{size}")
        assert config.method.name == name
        of_the_whole = name == "simclr" or (size == "tiny" and name in ("moco_v3", "barlow_twins"))
        assert config.depends_on_micro_batch != of_the_whole, "BatchNorm in the heads is of the micro-batch"
    assert load_config("simclr-tiny").method.model_dump()["views"] == config_views(name)


def config_views(name: str) -> dict[str, Any]:
    views: dict[str, Any] = load_config(f"{name.replace('_', '-')}-tiny").method.model_dump()["views"]
    return views


def gradients_of_ranks(rank: int, world: int) -> dict[str, tuple[float, np.ndarray]]:
    """Loss and gradient at this rank's share of five records, the first rank having two of them."""
    torch.set_num_threads(1)
    own = local_slice(5, rank, world)
    found = {}
    for name, key, width in (("barlow_twins", "projected", 6), ("moco_v3", "queries", 8)):
        rows = pair(4, width, 5).detach()[own].requires_grad_()
        keys = F.normalize(pair(5, width, 5), dim=-1).detach()[own]
        loss = make(name).loss({key: rows, "keys": keys}, {}, None).loss
        found[name] = (float(loss.detach()), torch.autograd.grad(loss, rows)[0].numpy())
    return found


@pytest.mark.processes
def test_every_rank_has_the_loss_of_the_global_batch_and_its_own_part_of_the_gradient() -> None:
    two, (one,) = run_ranks(2, gradients_of_ranks), run_ranks(1, gradients_of_ranks)
    for name, (loss, gradient) in one.items():
        assert [each[name][0] for each in two] == pytest.approx([loss, loss], rel=1e-9)
        joined = np.concatenate([each[name][1] for each in two])
        np.testing.assert_allclose(joined, gradient, rtol=1e-7, atol=1e-10, err_msg=name)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_is_the_same_on_every_topology(name: str, tmp_path: Path) -> None:
    values = config_for(make_shards(tmp_path / "shards", silent=60)).resolved()
    # Adam divides rounding by rounding where a gradient is nothing, and correlations of ten records make much of it.
    values["optimizer"]["eps"] = 1e-3
    values["data"]["patient_disjoint"] = name not in OF_PATIENTS
    values["encoder"] = ENCODERS.get(name, values["encoder"])
    run_topologies({**values, "method": {"name": name, **TRAINED[name]}}, tmp_path)
    check_topologies(tmp_path, ["loss", "grad_norm"], rtol=5e-4)
    if name in OF_PATIENTS:
        assert any(trace(tmp_path / "whole", OF_PATIENTS[name])), "no batch held two records of a patient"


def learn(rank: int, world: int, shards: Path, root: Path, name: str) -> None:
    base = config_for(shards, steps=30, checkpoint_every=15, lead_dropout=0.0, log_every=1).resolved()
    rate = 5e-3
    if name == "ts_tcc":  # whose tokens become one at such a rate, or so narrow
        base["encoder"], rate = {**ENCODERS[name], "width": 8}, 1e-3
    config = parse_config({**base, "method": {"name": name, **LEARNS[name]}, "optimizer": {"lr": rate}})
    train(config, root / name, NullObserver())


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", LEARNS)
def test_its_loss_falls_records_stay_apart_and_the_encoder_leaves_alone(name: str, tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", silent=60)
    run_ranks(1, learn, shards, tmp_path, name, init=False, deadline=120)
    lines = read_trace(tmp_path / name)
    losses = [line["loss"] for line in lines]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert lines[-1]["effective_rank"] > 2.0
    encoder = load_encoder(export_run(tmp_path / name, program=False)["path"])
    assert not any("projector" in key or "teacher" in key for key in encoder.ecg.state_dict())
