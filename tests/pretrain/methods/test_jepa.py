"""What is told is what a teacher sees at hidden places, in value and gradient; the student sees nothing of them."""

from __future__ import annotations

import dataclasses
import math
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import load_config, parse_config
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.jepa import Jepa, hide
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.teacher import rising
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.checkpoints.load import load_weights
from cardialign.pretrain.training.loop import train
from tests.support.processes import run_ranks
from tests.support.small_encoder import SPEC, small_config
from tests.support.tiny_shards import config_for, make_shards

ENCODER = {"name": "vit1d", "width": 16, "depth": 1, "heads": 2, "patches": "record", "patch_ms": 100,
           "embedding_dim": 8}  # fmt: skip
METHOD = {"name": "jepa", "predictor_width": 8, "predictor_depth": 1, "predictor_heads": 2, "block_ms": 300,
          "momentum": 0.9}  # fmt: skip
B, N, K = 6, 20, 10
NO_LEAD = 4
BOTH = pytest.mark.parametrize("patches", ["record", "lead"])


def make(patches: str = "record", **method: Any) -> Jepa:
    torch.manual_seed(0)
    made = create_method(small_config(encoder={**ENCODER, "patches": patches}, method={**METHOD, **method}), SPEC)
    assert isinstance(made, Jepa)
    for buffer in made.teacher.buffers():  # a teacher that has gone another way
        buffer.mul_(1.0 + 0.3 * torch.rand_like(buffer))
    return made.double().eval()


def batch() -> Batch:
    """Record 1 lacks leads, 2 ends after 95 samples, 4 has no lead, 5 ends within its first patch."""
    generator, rows = np.random.default_rng(0), np.arange(B)
    mask = np.ones((B, 12), dtype=bool)
    mask[1, 4:], mask[NO_LEAD] = False, False
    valid = np.full(B, 200, dtype=np.int32)
    valid[2], valid[5] = 95, 7
    signal = generator.normal(size=(B, 12, 200)).astype(np.float32)
    return Batch(1, rows, signal, mask, valid, rows, np.zeros(B, np.float32), np.zeros(B, np.int8), rows)


def asked(method: Jepa, given: Batch | None = None) -> dict[str, torch.Tensor]:
    return method.inputs(given or batch(), None, Draws(0, 1, slice(0, B)))


def test_hidden_stretches_are_long_and_as_many_patches_are_hidden_as_asked_for() -> None:
    generator, places, stretches = np.random.default_rng(0), np.zeros(40), set()
    for _ in range(500):
        found = hide(40, 32, 5, generator.random((40, 3)))
        runs = [len(list(group)) for on, group in groupby(found.tolist()) if on]
        assert sum(runs) == 32 and min(runs) >= 5
        places += found
        stretches.add(len(runs))
    assert {1, 2, 3, 4} <= stretches, "one stretch of 32, or several"
    assert (places > 0).all() and (places < 500).all(), "every place may be hidden, and shown"
    assert np.abs(places - places[::-1]).max() < 60, "the end of a record is hidden as often as its beginning"
    for length, count, least in ((9, 7, 20), (1, 0, 5), (0, 0, 5), (6, 6, 2)):
        found = hide(length, count, least, generator.random((40, 3)))
        runs = [len(list(group)) for on, group in groupby(found.tolist()) if on]
        assert found.sum() == count and len(runs) == (1 if count else 0)


@BOTH
def test_shown_and_hidden_are_the_recorded_patches_in_all_leads_at_once(patches: str) -> None:
    method = make(patches)
    inputs = asked(method)
    leads = 12 if patches == "lead" else 1
    shown, hidden = (inputs[name].unflatten(1, (leads, N)).numpy() for name in ("shown", "hidden"))
    assert not (shown & hidden).any()
    recorded = np.zeros((B, leads, N), dtype=bool)
    for row, (length, present) in enumerate([(20, 12), (20, 4), (9, 12), (20, 12), (0, 0), (0, 12)]):
        recorded[row, : present if patches == "lead" else int(present > 0), :length] = True
    assert np.array_equal(shown | hidden, recorded), "patch 9 of record 2 holds samples 90 to 99, padding from 95 on"
    for row, length in ((0, 20), (1, 20), (2, 9), (3, 20)):
        count = shown[row, 0].sum()
        assert math.ceil(0.15 * length) <= count <= math.ceil(0.25 * length)
        here = recorded[row].any(axis=1)
        assert (shown[row, here] == shown[row, 0]).all(), "the same instants in every lead"
    kept = inputs["kept"]
    seen = inputs["shown"].gather(1, kept)
    assert torch.equal(torch.zeros_like(inputs["shown"]).scatter_(1, kept, seen), inputs["shown"])
    full, names = batch(), ("rows", "signal", "lead_mask", "valid_samples", "report", "age_years", "sex")
    parts = []
    for rank in range(3):
        rows = local_slice(B, rank, 3)
        part = Batch(1, *(getattr(full, name)[rows] for name in names), full.rows)
        parts.append(method.inputs(part, None, Draws(0, 1, rows)))
    for name in ("shown", "hidden", "kept"):
        assert torch.equal(torch.cat([each[name] for each in parts]), inputs[name])


def by_hand(method: Jepa, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[float], int]:
    """Record after record, every sequence without what it must not see, nothing masked."""
    errors, spread = [], []
    for row in range(B):
        shown, hidden = (inputs[name][row].nonzero()[:, 0] for name in ("shown", "hidden"))
        if not len(hidden):
            continue
        given = [inputs[name][row : row + 1] for name in ("signal", "lead_mask", "valid_samples")]
        there = torch.cat([shown, hidden])
        student, teacher = (tower.embed_patches(*given) for tower in (method.ecg, method.teacher))
        seen = method.ecg.temporal(student.tokens[:, shown], student.seconds[shown], None)
        small = seen @ method.to_predictor.weight.T + method.to_predictor.bias
        line = torch.cat([small[0], method.mask_token.expand(len(hidden), -1)])
        if method.lead is not None:
            line = line + method.lead[there // N]
        told = method.to_tokens(method.predictor(line[None], student.seconds[there], None))[0, len(shown) :]
        with torch.no_grad():
            wanted = method.teacher.temporal(teacher.tokens[:, there], teacher.seconds[there], None)[0, len(shown) :]
            wanted = wanted - wanted.mean(dim=1, keepdim=True)
            wanted = wanted / (wanted.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
            spread += (wanted - wanted.mean(dim=0)).square().mean(dim=1).tolist()
        errors += [(told[k] - wanted[k]).abs().sum() / 16 for k in range(len(hidden))]
    return torch.stack(errors).mean(), spread, len(errors)


@BOTH
def test_the_loss_and_its_gradients_are_the_formula(patches: str) -> None:
    method = make(patches)
    inputs = asked(method)
    loss, metrics, chance = method.loss(method(inputs), inputs, None)
    expected, spread, count = by_hand(method, inputs)
    assert count == int(inputs["hidden"].sum()) == int(method.counts(inputs)["foretold"].sum()) and chance is None
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert metrics["spread"].item() == pytest.approx(np.mean(spread), rel=1e-9) and 0 < metrics["spread"] < 1
    unread = ("ecg.projection.",)  # of the embedding, which no token passes
    learns = {name: p for name, p in method.named_parameters() if not name.startswith(unread)}
    assert not any(name.startswith("teacher") for name in learns)
    found, wanted = (torch.autograd.grad(each, list(learns.values())) for each in (loss, expected))
    for name, one, other in zip(learns, found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-11, msg=name)
    assert sum(gradient.abs().max() > 1e-4 for gradient in found) > 10


@BOTH
@torch.no_grad()
def test_other_samples_at_hidden_places_change_what_is_wanted_and_never_what_is_told(patches: str) -> None:
    method, given = make(patches), batch()
    inputs = asked(method)
    shown = inputs["shown"].unflatten(1, (-1, N)).any(dim=1).repeat_interleave(K, dim=1)
    noise = torch.randn(B, 12, N * K, dtype=torch.float64) * ~shown[:, None]
    other = asked(method, dataclasses.replace(given, signal=given.signal + noise.numpy().astype(np.float32)))
    told = []
    for each in (inputs, other):
        patch = method.ecg.embed_patches(each["signal"], each["lead_mask"], each["valid_samples"])
        seen = each["shown"].gather(1, each["kept"])
        tokens = method.ecg.encode_patches(patch.keep(each["kept"])._replace(mask=seen))
        told.append(method._predict(tokens, each, patch.seconds)[each["shown"] | each["hidden"]])
    assert torch.equal(*told)
    before, after = method(inputs), method(other)
    assert torch.equal(before["ecg"], after["ecg"])
    assert (before["foretold"][:4, 0] != after["foretold"][:4, 0]).all()


@BOTH
@torch.no_grad()
def test_what_was_not_recorded_says_nothing(patches: str) -> None:
    """Samples of missing leads and of padding, NaN among them, change no figure; where nothing is, nothing is asked."""
    method, given = make(patches), batch()
    signal = given.signal.copy()
    signal[1, 4:], signal[2, :, 95:], signal[NO_LEAD], signal[5, :, 7:] = np.nan, 50.0, np.nan, np.nan
    features, other = (method(asked(method, each)) for each in (given, dataclasses.replace(given, signal=signal)))
    for name, values in features.items():
        assert torch.equal(values, other[name]) and values.isfinite().all(), name
    assert features["foretold"][[NO_LEAD, 5]].abs().sum() == 0


def test_the_teacher_follows_what_the_optimizer_made_and_leaves() -> None:
    method = make(momentum=0.9, last_momentum=0.98, momentum_steps=4)
    assert [rising(0.9, step, 4, 0.98) for step in (0, 2, 4, 9)] == pytest.approx([0.9, 0.94, 0.98, 0.98])
    by_hand = {name: tensor.numpy().copy() for name, tensor in method.teacher.state_dict().items()}
    for step, m in enumerate((0.9, 0.98 - 0.08 * (math.cos(math.pi / 4) + 1) / 2, 0.94)):
        student = {name: tensor + step + 1 for name, tensor in method.ecg.named_parameters()}
        method.after_update(step, lambda prefix, now=student: now if prefix == "ecg." else {})  # type: ignore[misc]
        for name, tensor in student.items():
            by_hand[name] = m * by_hand[name] + (1 - m) * tensor.detach().numpy()
            np.testing.assert_allclose(method.teacher.state_dict()[name].numpy(), by_hand[name], rtol=1e-12, atol=1e-12)
    leaves = Jepa.exported(method.state_dict()).encoder
    assert set(leaves) == set(method.ecg.state_dict())
    assert all(torch.equal(tensor, method.teacher.state_dict()[name]) for name, tensor in leaves.items())


@pytest.mark.parametrize(
    ("encoder", "method", "message"),
    [
        ({"name": "resnet1d", "width": 8}, {}, "set encoder.name to vit1d"),
        (ENCODER, {"block_ms": 1700}, "17 hidden patches in a row, and of the 20 of a record 15 are hidden"),
        (ENCODER, {"least_shown": 0.5}, "least_shown 0.5 is above most_shown 0.25"),
        (ENCODER, {"predictor_width": 9}, "predictor_width 9 is not a multiple of predictor_heads 2"),
    ],
)
def test_what_cannot_be_hidden_is_refused(encoder: dict[str, Any], method: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        create_method(small_config(encoder=encoder, method={**METHOD, **method}), SPEC)
    assert message in f"{caught.value.problem} {caught.value.remedy}"


def test_the_published_recipe_hides_as_published() -> None:
    method = load_config("jepa-published").method.model_dump()
    assert (method["least_shown"], method["most_shown"], method["block_ms"]) == (0.15, 0.25, 500)
    assert load_config("jepa-published").encoder.model_dump()["patch_ms"] == 50


def learn(rank: int, world: int, shards: Path, root: Path) -> None:
    base = config_for(shards, steps=40, checkpoint_every=40, lead_dropout=0.0, log_every=1).resolved()
    changed = {
        "encoder": {**ENCODER, "width": 32, "depth": 2},
        "method": {**METHOD, "predictor_width": 32},
        "optimizer": {"lr": 5e-3},
    }
    train(parse_config({**base, **changed}), root, NullObserver())


@pytest.mark.slow
@pytest.mark.processes
def test_its_loss_falls_records_and_patches_stay_apart_and_the_teacher_leaves(tmp_path: Path) -> None:
    run_ranks(1, learn, make_shards(tmp_path / "shards", silent=60), tmp_path / "run", init=False, deadline=120)
    lines = read_trace(tmp_path / "run")
    losses = [line["loss"] for line in lines]
    assert losses[0] > 0.7 and np.mean(losses[-5:]) < 0.8 * losses[0], "to say nothing costs 0.8 of unit tokens"
    assert lines[-1]["effective_rank"] > 2.0 and lines[-1]["spread"] > 0.1
    encoder = load_encoder(export_run(tmp_path / "run", program=False)["path"])
    weights = load_weights(max((tmp_path / "run" / "checkpoints").iterdir()))
    for name, tensor in encoder.ecg.state_dict().items():
        assert torch.equal(tensor, weights[f"teacher.{name}"]), name
