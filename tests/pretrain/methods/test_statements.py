"""Every statement is a yes-or-no question: the loss by hand, what is asked, and the same run on any topology."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import TextBank, build_text_bank
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.parts.statements import (
    StatementConfig,
    StatementLoss,
    asked_statements,
    statements_made,
)
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.loop import train
from tests.support.processes import run_ranks
from tests.support.small_encoder import SPEC, small_config
from tests.support.tiny_shards import HashingEncoder, config_for, make_shards


class Bank:
    """Four reports over five statements: 0 is made by three of them, 4 by none."""

    sets = ((0, 2), (0,), (1, 0), (2, 3))
    embeddings = np.zeros((4, 3), dtype=np.float16)

    def statement_sets(self, report_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen = [sorted(self.sets[i]) for i in report_ids]
        return np.cumsum([0, *map(len, chosen)]), np.array([s for row in chosen for s in row], dtype=np.int32)

    def statement_vectors(self) -> np.ndarray:
        return np.eye(5, 3, dtype=np.float32)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not asked for")


def test_the_loss_is_the_formula_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    ecg, words = (F.normalize(torch.randn(n, 4, generator=generator), dim=1).requires_grad_() for n in (3, 5))
    made = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 1]], dtype=torch.bool)
    module = StatementLoss(StatementConfig(scale=7.0, bias=-1.5))
    pairs = module(ecg, words, made)
    loss = pairs[:, 0].sum() / pairs[:, 1].sum()
    loss.backward()
    total, slope = 0.0, np.zeros((3, 4))
    for i in range(3):
        for j in range(5):
            logit = 7.0 * float(ecg[i].detach().double() @ words[j].detach().double()) - 1.5
            answer = 1 / (1 + math.exp(-logit))
            total -= math.log(answer if made[i, j] else 1 - answer)
            slope[i] += (answer - float(made[i, j])) * 7.0 * words[j].detach().double().numpy() / 15
    assert pairs[:, 1].tolist() == [5, 5, 5]
    assert loss.item() == pytest.approx(total / 15, rel=1e-6)
    np.testing.assert_allclose(ecg.grad, slope, atol=1e-6)
    assert all(p.shape == (1,) and float(p.grad.abs()) > 0 for p in module.parameters())


def test_the_statements_that_the_most_reports_make_are_asked() -> None:
    bank = Bank()
    asked = asked_statements(bank, 2)
    assert asked.column.tolist() == [0, -1, 1, -1, -1], "made by 3, 1, 2, 1 and 0 reports"
    assert torch.equal(asked.vectors, torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (3 / 4, 2 / 4)]
    assert asked.chance == pytest.approx(sum(entropy) / 2)
    made = statements_made(bank, np.array([3, 0, 1]), asked.column, 2)
    assert made.tolist() == [[False, True], [True, True], [True, False]]
    everything = asked_statements(bank, 100)
    assert everything.column.tolist() == [0, 1, 2, 3, 4]
    assert everything.chance < asked.chance, "a statement that nobody makes is answered without looking"


def test_a_report_encoder_that_trains_is_refused() -> None:
    text = {"encoder": "minilm", "trainable": "partial"}
    config = small_config(method={"name": "cardialign", "statements": {}}, text=text)
    with pytest.raises(UsageError, match=r"method.statements asks for a frozen report encoder"):
        create_method(config, SPEC)


def test_a_bank_has_their_vectors_and_one_of_an_earlier_release_says_how_it_gets_them(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    encoder = HashingEncoder()
    bank = TextBank.open(shards, encoder.fingerprint)
    one = bank.statements[1]
    np.testing.assert_allclose(bank.statement_vectors()[1], encoder.embed([one])[0], atol=1e-3)
    before, path = bank.digest, bank.path / "statement_vectors.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(DataError, match=r"statement_vectors.npy is not the one"):
        TextBank.open(shards, encoder.fingerprint).statement_vectors()
    path.unlink()
    description = json.loads((bank.path / "bank.json").read_text())
    del description["derived"]
    (bank.path / "bank.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"has no statement_vectors\.npy") as raised:
        TextBank.open(shards, encoder.fingerprint).statement_vectors()
    assert "text-bank build" in raised.value.remedy
    again = build_text_bank(ShardSet.open(shards), encoder)
    assert path.read_bytes() == whole and again.digest == before, "a run is bound to the reports, which are the same"


def learn(rank: int, world: int, shards: Path, run_dir: Path, micro: int | None, stage: int) -> None:
    base = config_for(shards, steps=4, log_every=1, checkpoint_every=4, micro_batch=micro, zero_stage=stage).resolved()
    view = {"shortest": 1.0, "roll": True, "hidden_leads": 0.2}
    method = {"name": "cardialign", "statements": {"most": 7}, "view": view}
    train(parse_config({**base, "method": method}), run_dir, NullObserver())


@pytest.mark.slow
@pytest.mark.processes
def test_two_workers_and_small_micro_batches_lose_as_one_worker_does(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    for name, world, micro, stage in (("one", 1, None, 1), ("two", 2, 2, 3)):
        run_ranks(world, learn, shards, tmp_path / name, micro, stage, init=False, deadline=120)
    one, two = (read_trace(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 4 and len({line["loss"] for line in one}) == 4
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert a["loss"] == pytest.approx(a["report_loss"] + 10 * a["statement_loss"], rel=1e-6)
