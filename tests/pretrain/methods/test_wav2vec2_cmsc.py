"""The loss is the formula, half after half and token after token; draws are what they say; one run everywhere."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import load_config, parse_config
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.parts.device_draws import gumbel_noise, uniform
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.wav2vec2_cmsc import Wav2Vec2Cmsc, hidden_spans
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.loop import train
from tests.support.processes import run_ranks
from tests.support.small_encoder import SPEC, small_config
from tests.support.tiny_shards import config_for, make_shards
from tests.support.topology import check_topologies, run_topologies

ENCODER = {
    "name": "conv_transformer",
    "width": 16,
    "depth": 1,
    "heads": 2,
    "channels": 8,
    "convolutions": 2,
    "position_kernel": 4,
    "position_groups": 2,
    "embedding_dim": 8,
}
METHOD = {
    "name": "wav2vec2_cmsc",
    "mask_span": 3,
    "negatives": 4,
    "words": 3,
    "code_width": 6,
    "target_width": 5,
    "dropout_input": 0.0,
    "dropout_features": 0.0,
    "softness_decay": 0.9,
}
B, N, STEP = 6, 25, 3
TOKENS = (25, 25, 11, 0, 0, 25)
"""Halves of 100 samples in tokens of 4; record 2 ends after 95 samples, its half after 47; 3 has no lead, 4 ends early.
Records 0 and 5 are of one patient."""


def make(**method: Any) -> Wav2Vec2Cmsc:
    torch.manual_seed(0)
    made = create_method(small_config(encoder=ENCODER, method={**METHOD, **method}), SPEC)
    assert isinstance(made, Wav2Vec2Cmsc)
    return made.double()


def batch() -> Batch:
    generator, rows = np.random.default_rng(0), np.arange(B)
    mask = np.ones((B, 12), dtype=bool)
    mask[1, 4:], mask[3] = False, False
    valid = np.full(B, 200, dtype=np.int32)
    valid[2], valid[4] = 95, 7
    signal = generator.normal(size=(B, 12, 200)).astype(np.float32)
    of = np.array([7, 3, 2, 4, 5, 7])
    return Batch(1, rows, signal, mask, valid, rows, np.zeros(B, np.float32), np.zeros(B, np.int8), rows, patient=of)


def asked(method: Wav2Vec2Cmsc, given: Batch | None = None, rows: slice = slice(0, B)) -> dict[str, torch.Tensor]:
    return method.inputs(given or batch(), None, Draws(0, STEP, rows))


def test_stretches_are_as_many_and_as_long_as_asked_for_anywhere() -> None:
    """156 tokens, 0.65, stretches of 10: 10 of them, 11 in 14 of 100 draws. A token in the middle stays where none of
    the 10 places begins one that would hide it, of 147: hypergeometric."""
    generator = np.random.default_rng(0)
    found = np.array([hidden_spans(156, 0.65, 10, generator.random(157)) for _ in range(3000)])
    stays = 0.86 * stats.hypergeom.pmf(0, 147, 10, 10) + 0.14 * stats.hypergeom.pmf(0, 147, 11, 10)
    assert found[:, 20:136].mean() == pytest.approx(1 - stays, abs=0.005)
    assert found[:, [0, 155]].mean() == pytest.approx(10.14 / 147, abs=0.015), "one place alone hides the first token"
    for length in range(60):
        for _ in range(20):
            hidden = hidden_spans(length, 0.65, 10, generator.random(61))
            assert hidden.shape == (length,)
            assert hidden.sum() >= 2 and not hidden.all() if length > 2 else not hidden.any()


def test_noise_is_gumbel_and_decided_by_its_key() -> None:
    key = torch.arange(40, dtype=torch.int64)
    noise, even = gumbel_noise(key, 50, 30), uniform(key, 50, 30)
    assert stats.kstest(noise.numpy().ravel(), stats.gumbel_r.cdf).pvalue > 0.01
    assert stats.kstest(even.numpy().ravel(), stats.uniform.cdf).pvalue > 0.01
    assert torch.equal(gumbel_noise(key[7:9], 50, 30), noise[7:9])
    odds = torch.tensor([0.2, 0.5, 0.3]).log()
    chosen = (odds + gumbel_noise(key, 2000, 3)).argmax(dim=-1).flatten().bincount() / 80_000
    assert chosen.tolist() == pytest.approx([0.2, 0.5, 0.3], abs=0.01), "the largest is a draw from the shares"


def test_hidden_tokens_are_recorded_ones_leads_are_hidden_by_half_and_rows_draw_for_themselves() -> None:
    method = make()
    inputs = asked(method)
    hidden = inputs["hidden"]
    assert inputs["recorded"].tolist() == [[n, n] for n in TOKENS]
    for row, count in enumerate(TOKENS):
        for half in range(2):
            here = hidden[row, half]
            assert not here[count:].any() and (2 <= here.sum() < count if count else not here.any())
            assert here[inputs["places"][row, half, : here.sum()]].all()
    assert (hidden[:2, 0] != hidden[:2, 1]).any(dim=1).all(), "each half has its own"
    leads = inputs["leads"]
    assert not leads[1, :, 4:].any() and leads[[0, 1, 2, 4, 5]].any(dim=2).all() and not leads[3].any()
    assert (leads[:, 0] != leads[:, 1]).any() and not leads[0].all()
    assert make(hidden_leads=0.0).inputs(batch(), None, Draws(0, STEP, slice(0, B)))["leads"][0].all()
    parts = []
    for rank in range(3):
        rows = local_slice(B, rank, 3)
        full = batch()
        names = ("rows", "signal", "lead_mask", "valid_samples", "report", "age_years", "sex", "patient")
        own = {name: getattr(full, name)[rows] for name in names}
        parts.append(asked(method, dataclasses.replace(full, **own), rows))
    for name, whole in inputs.items():
        joined = torch.cat([part[name] for part in parts if name in part])
        assert name == "valid_samples" or torch.equal(joined, whole), name
    assert inputs["softness"].tolist() == pytest.approx([2 * 0.9**3] * B)
    late = method.inputs(batch(), None, Draws(0, 100, slice(0, B)))
    assert late["softness"].tolist() == [0.5] * B and not torch.equal(late["hidden"], hidden)


def test_negatives_are_the_other_hidden_tokens_alike() -> None:
    method = make(negatives=4000)
    inputs = asked(method)
    found = method.negatives(inputs)
    for row, half in ((0, 0), (2, 1), (5, 1)):
        hidden = inputs["hidden"][row, half].nonzero()[:, 0].tolist()
        for t in hidden:
            counts = found[2 * row + half, t].bincount(minlength=N)
            others = [n for n in hidden if n != t]
            assert counts[others].sum() == 4000
            assert stats.chisquare(counts[others].numpy()).pvalue > 1e-4


def half_of(row: int, half: int) -> tuple[torch.Tensor, int]:
    """The half as a record of its own, (1, 12, n), and its tokens."""
    whole = batch()
    n = int(whole.valid_samples[row]) // 2
    return torch.from_numpy(whole.signal[row : row + 1, :, half * n : half * n + n]).double(), n // 4


def by_hand(method: Wav2Vec2Cmsc, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Half after half, nothing padded; token after token, as the formula stands."""
    errors, right, shares, loud, views = [], [], [], [], {}
    negatives = method.negatives(inputs)
    for row in (0, 1, 2, 5):
        for half in range(2):
            (signal, tokens), leads = half_of(row, half), inputs["leads"][row, half][None]
            z = method.ecg.convolved(signal, leads)
            loud += list(z[0].square().mean(dim=0))
            patches = method.ecg.embed_convolved(z, leads)
            hidden = inputs["hidden"][row, half, :tokens]
            masked = torch.where(hidden[:, None], method.mask_token, patches.tokens)
            states = method.ecg.encode_patches(patches._replace(tokens=masked))[0] @ method.of_state.weight.T
            states = states + method.of_state.bias
            whole = method.ecg.encode_patches(patches)
            views[row, half] = F.normalize(method.ecg.pool(whole, torch.ones(1, tokens, dtype=torch.bool))[0], dim=0)  # type: ignore[misc]
            odds = method.quantiser.odds(method.ecg.to_tokens.norm(z.transpose(1, 2)))[0].unflatten(-1, (2, 3))
            noise = gumbel_noise(inputs["key"][row, half][None], N, 2, 3)[0, :tokens]
            soft = ((odds + noise) / (2 * 0.9**3)).softmax(dim=-1)
            words = soft.argmax(dim=-1)
            picked = F.one_hot(words, 3) + soft - soft.detach()
            said = torch.cat([picked[:, g] @ method.quantiser.words[g] for g in range(2)], dim=-1)
            target = method.of_code(said)
            for t in hidden.nonzero()[:, 0].tolist():
                shares.append(odds[t].softmax(dim=-1))
                own = torch.exp(torch.cosine_similarity(states[t], target[t], dim=0) / 0.1)
                asked_of = [n for n in negatives[2 * row + half, t].tolist() if words[n].tolist() != words[t].tolist()]
                others = [torch.exp(torch.cosine_similarity(states[t], target[n], dim=0) / 0.1) for n in asked_of]
                errors.append(-torch.log(own / torch.stack([own, *others]).sum()))
                right.append(all(own > other for other in others))
    mean = torch.stack(shares).mean(dim=0)
    used = sum(torch.exp(-(mean[g] * torch.log(mean[g])).sum()) for g in range(2))
    same, patient, rows = [], [], (0, 1, 2, 5)
    for a, b in ((0, 1), (1, 0)):
        for i in rows:
            scores = {k: torch.exp(views[i, a] @ views[k, b] / 0.1) for k in rows}
            share = {k: -torch.log(scores[k] / torch.stack(list(scores.values())).sum()) for k in rows}
            same.append(share[i])
            patient += [share[k] for k in rows if {i, k} == {0, 5}]
    found = {
        "contrastive": torch.stack(errors).mean(),
        "accuracy": torch.tensor(right).double().mean(),
        "words": torch.as_tensor(used),
        "magnitude": torch.stack(loud).mean(),
        "same_record": torch.stack(same).mean(),
        "same_patient": torch.stack(patient).mean(),
    }
    cmsc = 2 * (found["same_record"] + found["same_patient"])
    loss = found["contrastive"] + 0.1 * (6 - found["words"]) / 6 + 10 * found["magnitude"] + cmsc
    return {"loss": loss, **found}


def test_the_loss_and_its_gradients_are_the_formula() -> None:
    method = make()
    inputs = asked(method)
    found = method.loss(method(inputs), inputs, None)
    expected = by_hand(method, inputs)
    assert set(found.metrics) == set(expected) and found.chance is None
    for name, value in expected.items():
        assert found.metrics[name].item() == pytest.approx(value.item(), rel=1e-5), name
    assert 2 < found.metrics["words"] < 6 and 0 < found.metrics["accuracy"] < 1
    learns = {name: p for name, p in method.named_parameters() if not name.startswith("ecg.projection")}
    one, other = (torch.autograd.grad(each, list(learns.values())) for each in (found.loss, expected["loss"]))
    for name, a, b in zip(learns, one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-7, msg=name)
        assert a.abs().max() > 1e-5, name


def test_without_cmsc_the_transformer_runs_once_and_words_alone_are_asked_for() -> None:
    method = make(cmsc=0)
    inputs, calls = asked(method), []
    encode = method.ecg.encode_patches
    method.ecg.encode_patches = lambda patches: calls.append(1) or encode(patches)  # type: ignore[method-assign, assignment, func-returns-value]
    value = method.loss(method(inputs), inputs, None)
    assert len(calls) == 1 and "same_record" not in value.metrics
    expected = by_hand(make(), inputs)
    alone = expected["contrastive"] + 0.1 * (6 - expected["words"]) / 6 + 10 * expected["magnitude"]
    assert value.loss.item() == pytest.approx(alone.item(), rel=1e-5)


def test_what_was_not_recorded_says_nothing() -> None:
    method, given = make(), batch()
    signal = given.signal.copy()
    signal[1, 4:], signal[2, :, 95:], signal[3], signal[4, :, 7:] = np.nan, 50.0, np.nan, np.nan
    features, other = (method(asked(method, each)) for each in (given, dataclasses.replace(given, signal=signal)))
    for name, values in features.items():
        torch.testing.assert_close(values, other[name], rtol=0, atol=0)
        assert values.isfinite().all(), name
    nothing = {name: each[3:5] for name, each in features.items()}
    assert not any(nothing[name].any() for name in ("told", "right", "words", "spoken", "loud", "views"))
    inputs = {name: each[3:5] for name, each in asked(method).items()}
    loss = method.loss(nothing, inputs, None).loss
    assert loss == 0


def on_ranks(rank: int, world: int) -> tuple[float, dict[str, np.ndarray]]:
    """Loss, and gradient at this rank's share of five rows of features."""
    torch.set_num_threads(1)
    own, generator = local_slice(5, rank, world), torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(5, *shape, generator=generator, dtype=torch.float64)

    spoken = torch.tensor([[3.0], [5], [4], [0], [2]], dtype=torch.float64)
    shares = F.normalize(drawn(2, 3), p=1, dim=-1) * spoken[..., None]
    counted = {name: torch.cat([drawn(1) * spoken, spoken], dim=1) for name in ("told", "right", "loud")}
    rows = {**counted, "words": shares, "views": F.normalize(drawn(2, 4), dim=-1)}
    local = {name: each[own].requires_grad_() for name, each in rows.items()}
    recorded = torch.tensor([[9, 9], [9, 9], [9, 9], [0, 0], [9, 9]])[own]
    inputs = {"recorded": recorded, "patient": torch.tensor([1, 2, 1, 3, 1])[own]}
    loss = make().loss({**local, "spoken": spoken[own]}, inputs, None).loss
    gradients = torch.autograd.grad(loss, list(local.values()), allow_unused=True)
    return float(loss), {n: g.numpy() for n, g in zip(local, gradients, strict=True) if g is not None}


@pytest.mark.processes
def test_every_rank_has_the_loss_of_the_global_batch_and_its_own_part_of_the_gradient() -> None:
    two, (one,) = run_ranks(2, on_ranks), run_ranks(1, on_ranks)
    assert [each[0] for each in two] == pytest.approx([one[0]] * 2, rel=1e-9)
    assert {"told", "loud", "words", "views"} <= set(one[1])
    for name, whole in one[1].items():
        joined = np.concatenate([each[1][name] for each in two])
        np.testing.assert_allclose(joined, whole, rtol=1e-7, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    ("encoder", "method", "message"),
    [
        ({"name": "resnet1d", "width": 8}, {}, "set encoder.name to conv_transformer"),
        ({**ENCODER, "convolutions": 6}, {}, "half a record of 200 samples has 1 tokens of 64"),
        (ENCODER, {"groups": 4}, "groups 4 do not divide code_width 6"),
        (ENCODER, {"last_softness": 3}, "last_softness 3 is above softness 2"),
    ],
)
def test_what_cannot_be_told_is_refused(encoder: dict[str, Any], method: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        create_method(small_config(encoder=encoder, method={**METHOD, **method}), SPEC)
    assert message in f"{caught.value.problem} {caught.value.remedy}"


def test_the_published_recipe_has_the_published_size() -> None:
    """ECG-FM says 90.9 million parameters (McKeen et al. 2025); 156 tokens in 5 s at 500 Hz."""
    config = load_config("ecg-fm-published")
    with torch.device("meta"):
        method = create_method(config, SignalSpec(500, 10))
    assert isinstance(method, Wav2Vec2Cmsc) and method.tokens == 156
    assert sum(p.numel() for p in method.parameters()) == pytest.approx(90.9e6, rel=0.005)
    assert config.method == load_config("wav2vec2-cmsc-rlm-published").method


@pytest.mark.slow
@pytest.mark.processes
def test_every_topology_and_a_stop_give_the_same_run(tmp_path: Path) -> None:
    values = config_for(make_shards(tmp_path / "shards", silent=60)).resolved()
    values["optimizer"]["eps"] = 1e-3
    values["data"] |= {"normalisation": "none", "patient_disjoint": False}
    run_topologies({**values, "encoder": ENCODER, "method": METHOD}, tmp_path)
    check_topologies(tmp_path, ["loss", "grad_norm"], rtol=5e-4)


def learn(rank: int, world: int, shards: Path, root: Path) -> None:
    base = config_for(shards, steps=60, checkpoint_every=60, lead_dropout=0.0, log_every=1).resolved()
    method = {**METHOD, "negatives": 10, "words": 8, "code_width": 16, "target_width": 16}
    changed = {"encoder": {**ENCODER, "width": 32, "channels": 16}, "method": method, "optimizer": {"lr": 3e-3}}
    train(parse_config({**base, **changed}), root, NullObserver())


@pytest.mark.slow
@pytest.mark.processes
def test_hidden_tokens_are_found_halves_find_each_other_and_the_encoder_leaves_alone(tmp_path: Path) -> None:
    run_ranks(1, learn, make_shards(tmp_path / "shards", silent=60), tmp_path / "run", init=False, deadline=120)
    lines = read_trace(tmp_path / "run")
    names = ("contrastive", "same_record", "words")
    first, last = ({key: np.mean([line[key] for line in part]) for key in names} for part in (lines[:5], lines[-5:]))
    assert last["same_record"] < first["same_record"] and last["contrastive"] < min(first["contrastive"], math.log(11))
    assert lines[-1]["effective_rank"] > 2.0 and last["words"] > 4
    encoder = load_encoder(export_run(tmp_path / "run", program=False)["path"])
    assert not any(key.startswith(("quantiser", "of_", "mask_token")) for key in encoder.ecg.state_dict())
