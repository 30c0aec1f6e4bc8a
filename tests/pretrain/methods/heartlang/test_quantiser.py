"""The loss is the formula, beat by beat; what is no beat is in no mean; words are those of all workers; one run
everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import load_config, parse_config
from cardialign.pretrain.encoders.blocks.heartbeat_tokens import Heartbeats
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.heartlang.quantiser import HeartLangQuantiser
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.loop import train
from tests.support.processes import run_ranks
from tests.support.small_encoder import SPEC, small_config
from tests.support.tiny_shards import config_for, make_shards
from tests.support.topology import check_topologies, run_topologies

ENCODER = {"name": "beat_transformer", "width": 16, "depth": 1, "heads": 2, "mlp_ratio": 2.0, "embedding_dim": 8}
METHOD = {
    "name": "heartlang_quantiser",
    "words": 7,
    "code_width": 6,
    "decay": 0.9,
    "commitment": 0.5,
    "decoder_width": 12,
    "decoder_depth": 1,
    "decoder_heads": 2,
}
B = 5


def batch(rows: slice = slice(0, B)) -> Batch:
    """Record 1 lacks leads, 2 ends early, 3 has no lead, 4 ends before any beat. What was not recorded is not 0."""
    generator = np.random.default_rng(0)
    mask = np.ones((B, 12), dtype=bool)
    mask[1, 4:], mask[3] = False, False
    valid = np.full(B, 200, dtype=np.int32)
    valid[2], valid[4] = 115, 2
    signal = generator.normal(size=(B, 12, 200)).astype(np.float32)
    signal[~mask], signal[2, :, 115:], signal[4, :, 2:] = 1e3, np.nan, 7.0
    number = np.arange(B)[rows]
    n = len(number)
    return Batch(
        1, number, signal[rows], mask[rows], valid[rows], number, np.zeros(n, np.float32), np.zeros(n, np.int8),
        np.arange(B), patient=number,
    )  # fmt: skip


def make(**method: Any) -> HeartLangQuantiser:
    torch.manual_seed(0)
    made = create_method(small_config(encoder=ENCODER, method={**METHOD, **method}), SPEC)
    assert isinstance(made, HeartLangQuantiser)
    return made.double()


def alone(beats: Heartbeats, row: int) -> Heartbeats:
    """The beats of one record and nothing else, still a rectangle of leads: what is not there is taken away where all
    leads lack it."""
    there = beats.mask[row].unflatten(0, (12, -1)).any(dim=0)
    return Heartbeats(*(part[row].unflatten(0, (12, -1))[:, there].flatten(0, 1)[None] for part in beats))


def by_hand(method: HeartLangQuantiser, given: Batch) -> dict[str, torch.Tensor]:
    everything = method.ecg.cut(*map(torch.from_numpy, (given.signal, given.lead_mask, given.valid_samples)))
    errors, apart, used = [], [], []
    words = method.words.book.words
    for row in (0, 1, 2):
        beats = alone(everything, row)
        tokens = F.linear(beats.values.double(), method.ecg.of_beat.weight, method.ecg.of_beat.bias)
        states = method.ecg.encode(tokens, beats)
        first, _, last = method.words.to_code
        z = torch.tanh(states @ first.weight.T + first.bias) @ last.weight.T + last.bias  # type: ignore[operator, union-attr]
        z = z / z.square().sum(dim=-1, keepdim=True).sqrt()
        e = torch.zeros_like(z)
        for t in beats.mask[0].nonzero()[:, 0].tolist():
            k = max(range(len(words)), key=lambda k: float(z[0, t].detach() @ words[k]))
            e[0, t] = z[0, t] + (words[k] - z[0, t]).detach()
            apart.append((z[0, t] - words[k]).square().sum() / z.shape[-1])
            used.append(k)
        drawn = method.decoder(e, beats)
        for t in beats.mask[0].nonzero()[:, 0].tolist():
            for s in beats.inside[0, t].nonzero()[:, 0].tolist():
                errors.append((drawn[0, t, s] - beats.values[0, t, s]).square())
    shares = torch.bincount(torch.tensor(used)).double() / len(used)
    rebuilt, committed = torch.stack(errors).mean(), torch.stack(apart).mean()
    entropy = -sum(float(share) * float(share.log()) for share in shares if share > 0)
    loss = rebuilt + 0.5 * committed
    return {"loss": loss, "rebuilt": rebuilt, "committed": committed, "words": torch.tensor(entropy).exp()}


def test_the_loss_and_its_gradients_are_the_formula_whatever_stands_where_nothing_was_recorded() -> None:
    method = make()
    inputs = method.inputs(batch(), None, Draws(0, 0, slice(0, B)))
    features = method(inputs)
    assert features["rebuilt"][3:].tolist() == [[0, 0], [0, 0]], "no beat, no count"
    found, expected = method.loss(features, inputs, None), by_hand(method, batch())
    assert set(found.metrics) == set(expected) and found.chance is None
    for name, value in expected.items():
        assert found.metrics[name].item() == pytest.approx(value.item(), rel=1e-6), name
    learns = {n: p for n, p in method.named_parameters() if not n.startswith("ecg.projection")}
    one, other = (torch.autograd.grad(each, list(learns.values())) for each in (found.loss, expected["loss"]))
    for name, a, b in zip(learns, one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9, msg=name)
        assert a.abs().max() > 1e-7, name


def on_ranks(rank: int, world: int) -> tuple[list[float], np.ndarray, dict[str, np.ndarray]]:
    method, rows = make(), local_slice(B, rank, world)
    losses = []
    for step in range(3):
        inputs = method.inputs(batch(rows), None, Draws(0, step, rows))
        features = method(inputs)
        found = method.loss(features, inputs)
        losses.append(float(found.loss))
        method.after_update(step, lambda prefix: {})
    leaves = [features["rebuilt"], features["committed"]]
    gradients = torch.autograd.grad(found.loss, leaves)
    return losses, method.words.book.words.numpy(), dict(zip("rc", (g.numpy() for g in gradients), strict=True))


@pytest.mark.processes
def test_words_and_losses_are_those_of_the_global_batch() -> None:
    two, (one,) = run_ranks(2, on_ranks), run_ranks(1, on_ranks)
    for losses, words, _ in two:
        assert losses == pytest.approx(one[0], rel=1e-9)
        np.testing.assert_allclose(words, one[1], rtol=1e-9, atol=1e-12)
    assert len(set(one[0])) == 3, "the book moves"
    for name, whole in one[2].items():
        np.testing.assert_allclose(np.concatenate([each[2][name] for each in two]), whole, rtol=1e-9)


def test_another_encoder_and_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        create_method(small_config(method=METHOD), SPEC)
    assert "beat_transformer" in caught.value.remedy
    with pytest.raises(UsageError, match="decoder_width 12 is not a multiple of decoder_heads 5"):
        make(decoder_heads=5)


def test_the_published_recipe_has_the_published_sizes() -> None:
    with torch.device("meta"):
        method = create_method(load_config("heartlang-quantiser-published"), SignalSpec(100, 10))
    assert isinstance(method, HeartLangQuantiser)
    assert method.words.book.words.shape == (8192, 128) and method.ecg.window == 96
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 2048 + 2048 + 768 + 4 * 768  # attention, MLP of 2,048, two LayerNorms
    for part, depth in ((method.ecg.temporal, 4), (method.decoder.temporal, 2)):
        assert sum(p.numel() for p in part.parameters()) == depth * layer + 2 * 768


def begun(rank: int, world: int, values: dict[str, Any], root: Path) -> None:
    train(parse_config(values), root, NullObserver())


@pytest.mark.slow
@pytest.mark.processes
def test_every_topology_and_a_stop_give_the_same_run(tmp_path: Path) -> None:
    """From a book that was begun: k-means of vectors so alike as those of fresh weights makes much of the last digit of
    float32. That it is of all workers is shown above, in float64."""
    values = {
        **config_for(make_shards(tmp_path / "shards", silent=60)).resolved(),
        "encoder": ENCODER,
        "method": METHOD,
    }
    short = {**values["training"], "steps": 3}
    run_ranks(1, begun, {**values, "training": short}, tmp_path / "begun", init=False, deadline=120)
    values["optimizer"]["eps"] = 1e-3
    run_topologies({**values, "init_from": str(tmp_path / "begun")}, tmp_path)
    check_topologies(tmp_path, ["loss", "committed", "grad_norm"], rtol=5e-4)


def learn(rank: int, world: int, shards: Path, root: Path) -> None:
    base = config_for(shards, steps=60, checkpoint_every=60, lead_dropout=0.0, log_every=1).resolved()
    changed = {"encoder": {**ENCODER, "width": 32}, "method": {**METHOD, "words": 32, "decoder_width": 32}}
    train(parse_config({**base, **changed, "optimizer": {"lr": 3e-3}}), root, NullObserver())


@pytest.mark.slow
@pytest.mark.processes
def test_beats_are_drawn_from_many_words_and_the_encoder_leaves_alone(tmp_path: Path) -> None:
    run_ranks(1, learn, make_shards(tmp_path / "shards", silent=60), tmp_path / "run", init=False, deadline=120)
    lines = read_trace(tmp_path / "run")
    assert np.mean([line["rebuilt"] for line in lines[-5:]]) < 0.5 * np.mean([line["rebuilt"] for line in lines[:5]])
    assert lines[-1]["words"] > 8, "of 32: beats are not called by one name"
    encoder = load_encoder(export_run(tmp_path / "run", program=False)["path"])
    assert not any(key.startswith(("words", "decoder")) for key in encoder.ecg.state_dict())
