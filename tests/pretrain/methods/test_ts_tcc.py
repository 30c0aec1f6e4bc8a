"""TS-TCC: both losses by loops in float64, what a summary has heard, and gradients of the global batch on two ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import load_config
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.two_views import VIEWS
from cardialign.pretrain.methods.ts_tcc import TsTcc
from tests.pretrain.methods.test_views import batch
from tests.support.processes import run_ranks
from tests.support.small_encoder import small_config

B, K = 6, 3
SMALL = {"steps": K, "width": 8, "depth": 1, "heads": 2, "hidden": 8, "projection_dim": 4}


def make(encoder: dict[str, Any] | None = None, **more: Any) -> TsTcc:
    torch.manual_seed(0)
    config = small_config(
        encoder=encoder or {"name": "resnet1d", "width": 2, "pooling": "mean", "embedding_dim": 8},
        method={"name": "ts_tcc", **SMALL, **more},
    )
    made = create_method(config, SignalSpec(100, 5))
    assert isinstance(made, TsTcc)
    return made.double()


def features(rows: slice = slice(0, B)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"guesses": (B, 2, K, 5), "tokens": (B, 2, K, 5), "contexts": (B, 2, 4)}
    made = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    made = {name: each if name == "guesses" else F.normalize(each, dim=-1) for name, each in made.items()}
    return {name: each[rows].clone().requires_grad_() for name, each in made.items()}


def given(rows: slice = slice(0, B)) -> dict[str, torch.Tensor]:
    return {"there": torch.tensor([True, True, False, True, True, True])[rows], "row": torch.arange(40, 40 + B)[rows]}


def by_hand(made: dict[str, torch.Tensor], temporal: float, contextual: float, tau: float) -> torch.Tensor:
    """Pair after pair, as the formulas stand; record 2 has nothing to foretell."""
    total, rows = torch.zeros((), dtype=torch.float64), [0, 1, 3, 4, 5]
    for view in range(2):
        for i in rows:
            for k in range(K):
                scores = [torch.exp(made["guesses"][i, view, k] @ made["tokens"][n, view, k]) for n in rows]
                own = scores[rows.index(i)]
                total = total - temporal * torch.log(own / torch.stack(scores).sum()) / (len(rows) * K)
    views = [made["contexts"][i, view] for view in range(2) for i in range(B)]
    for i in range(2 * B):
        scores = [torch.exp(views[i] @ views[n] / tau) for n in range(2 * B)]
        others = torch.stack([scores[n] for n in range(2 * B) if n != i]).sum()
        total = total - contextual * torch.log(scores[(i + B) % (2 * B)] / others) / (2 * B)
    return total


def test_the_loss_and_its_gradients_are_the_formulas() -> None:
    made = features()
    value = make(temporal=0.6, contextual=0.3, temperature=0.4).loss(made, given(), None)
    wanted = by_hand(made, 0.6, 0.3, 0.4)
    assert value.loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    leaves = list(made.values())
    for found, expected in zip(*(torch.autograd.grad(each, leaves) for each in (value.loss, wanted)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    assert value.chance is not None
    assert value.chance.loss == pytest.approx(1.2 * math.log(5) + 0.3 * math.log(2 * B - 1), rel=1e-5)


@torch.no_grad()
def test_a_summary_has_heard_nothing_behind_t_and_what_it_foretells_follows_in_the_other_view() -> None:
    method = make().eval()
    inputs = method.inputs(batch(), None, Draws(1, 2, slice(0, 24)))
    t, tokens = inputs["t"], -(-batch().valid_samples.astype(int) // 16)
    assert inputs["there"].all() and (t >= 0).all() and len(set(t[:, 0].tolist())) > 3
    assert (t.numpy() + K < tokens[:, None]).all(), "all that is foretold was recorded"
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    made = method(inputs)
    z = [F.normalize(method.seen(inputs, view, tokens=True).tokens, dim=-1) for view in VIEWS]
    for row in (0, 5, 23):
        for view in range(2):
            last = int(t[row, view])
            torch.testing.assert_close(made["tokens"][row, view], z[1 - view][row, last + 1 : last + 1 + K])
            later = z[view][row : row + 1].clone()
            later[:, last + 1 :] += 1.0
            heard = [method._summary(each, t[row : row + 1, view]) for each in (z[view][row : row + 1], later)]
            torch.testing.assert_close(heard[0], heard[1], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(method.ahead[1](heard[0])[0].float(), made["guesses"][row, view, 1])
            earlier = later.clone()
            earlier[:, last] += 1.0
            assert not torch.allclose(method._summary(earlier, t[row : row + 1, view]), heard[0])


def test_a_record_too_short_to_foretell_has_no_part_in_it_and_draws_belong_to_the_row() -> None:
    method, given = make(), batch()
    given.valid_samples[4], given.lead_mask[7] = 16 * K, False
    whole = method.inputs(given, None, Draws(1, 2, slice(0, 24)))
    assert whole["there"].tolist() == [row not in (4, 7) for row in range(24)]
    again = method.inputs(given, None, Draws(1, 3, slice(0, 24)))
    assert not torch.equal(again["t"], whole["t"])


def on_ranks(rank: int, world: int) -> tuple[float, dict[str, np.ndarray]]:
    torch.set_num_threads(1)
    own = local_slice(B, rank, world)
    made = features(own)
    loss = make().loss(made, given(own), None).loss
    gradients = torch.autograd.grad(loss, list(made.values()))
    return float(loss.detach()), {name: each.numpy() for name, each in zip(made, gradients, strict=True)}


@pytest.mark.processes
def test_every_rank_has_the_loss_of_the_global_batch_and_its_own_part_of_the_gradient() -> None:
    two, (one,) = run_ranks(2, on_ranks), run_ranks(1, on_ranks)
    assert [each[0] for each in two] == pytest.approx([one[0]] * 2, rel=1e-7)
    for name, gradient in one[1].items():
        joined = np.concatenate([each[1][name] for each in two])
        np.testing.assert_allclose(joined, gradient, rtol=1e-5, atol=1e-9, err_msg=name)


def test_its_recipes_load_and_what_cannot_foretell_is_refused() -> None:
    for size in ("tiny", "published"):
        config = load_config(f"ts-tcc-{size}")
        assert config.method.name == "ts_tcc" and config.depends_on_micro_batch
    with pytest.raises(UsageError, match="foretells tokens, those of encoder s4"):
        make(encoder={"name": "s4", "width": 8, "embedding_dim": 8})
    with pytest.raises(UsageError, match="looks beyond the 32 tokens"):
        make(steps=32)
