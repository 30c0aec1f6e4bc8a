"""NT-Xent by hand over both views, no reports asked for, and an encoder that leaves without its projector."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.simclr import SimClr
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.loop import train
from tests.support.processes import run_ranks
from tests.support.small_encoder import SPEC, small_config
from tests.support.tiny_shards import config_for, make_shards


def test_the_loss_is_nt_xent() -> None:
    method = create_method(small_config(method={"name": "simclr", "temperature": 0.3}), SPEC)
    assert isinstance(method, SimClr)
    B, generator = 5, torch.Generator().manual_seed(0)
    projected = F.normalize(torch.randn(B, 2, 7, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()
    loss, metrics, chance = method.loss({"projected": projected}, {"row": torch.arange(B) + 40}, None)
    views = projected.detach().numpy().transpose(1, 0, 2).reshape(2 * B, 7)  # all first views, then all second ones
    total = 0.0
    for i in range(2 * B):
        other = (i + B) % (2 * B)
        others = [k for k in range(2 * B) if k != i]
        total -= views[i] @ views[other] / 0.3 - math.log(sum(math.exp(views[i] @ views[k] / 0.3) for k in others))
    assert loss.item() == pytest.approx(total / (2 * B), rel=1e-6)
    assert metrics["effective_negatives"].item() == pytest.approx(2 * B - 2)
    assert chance.loss == pytest.approx(math.log(2 * B - 1)), "one positive among 2B - 1 others"
    loss.backward()
    assert projected.grad is not None and (projected.grad.abs().sum(dim=-1) > 0).all()


def learn(rank: int, world: int, shards: Path, root: Path, wanted: dict[str, dict]) -> None:
    for name, training in wanted.items():
        base = config_for(shards, **{"steps": 25, "checkpoint_every": 25, "lead_dropout": 0.0, **training}).resolved()
        config = parse_config({**base, "method": {"name": "simclr"}, "optimizer": {"lr": 5e-3}})
        train(config, root / name, NullObserver())


@pytest.mark.slow
@pytest.mark.processes
def test_it_learns_without_reports_alike_on_one_worker_and_two_and_exports_an_encoder(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", silent=60)
    shutil.rmtree(shards / "text_bank", ignore_errors=True)
    run_ranks(1, learn, shards, tmp_path, {"one": {}}, init=False, deadline=120)
    run_ranks(2, learn, shards, tmp_path, {"two": {"steps": 4, "micro_batch": 3}}, init=False, deadline=120)
    losses = [[line["loss"] for line in read_trace(tmp_path / name)] for name in ("one", "two")]
    np.testing.assert_allclose(losses[1][:1], losses[0][:1], rtol=1e-5)
    assert np.mean(losses[0][-5:]) < np.mean(losses[0][:5]) - 0.3
    encoder = load_encoder(export_run(tmp_path / "one")["path"])
    signal = np.random.default_rng(0).normal(size=(3, 12, 250)).astype(np.float32) * 0.3
    np.testing.assert_allclose(np.linalg.norm(encoder.embed(signal, sampling_rate=100), axis=1), 1, rtol=1e-5)
    assert not any("projector" in name for name in encoder.ecg.state_dict())
    with pytest.raises(UserError, match="trained without reports"):
        encoder.embed_text(["Sinus rhythm"])
