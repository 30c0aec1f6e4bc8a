"""Hidden beats are told by the names that stage 1 gave them; stage 1 is taken whole, or the run does not start."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import load_config, parse_config
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.heartlang.method import HeartLang, hide_beats
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.initialise import Start, initialise, require_start
from cardialign.pretrain.training.loop import train
from tests.pretrain.methods.heartlang import test_quantiser as first
from tests.support.processes import run_ranks
from tests.support.small_encoder import SPEC, small_config
from tests.support.tiny_shards import config_for, make_shards
from tests.support.topology import check_topologies, run_topologies

ENCODER = {"name": "beat_transformer", "width": 24, "depth": 1, "heads": 2, "mlp_ratio": 2.0, "embedding_dim": 8}
NAMER = {key: first.ENCODER[key] for key in ("width", "depth", "heads", "mlp_ratio")}
METHOD = {"name": "heartlang", "words": 7, "code_width": 6, "quantiser": NAMER}
B = first.B
FROM = {"init_from": "first", "init_fresh": ["ecg."]}


def make(seed: int = 0, **method: Any) -> HeartLang:
    torch.manual_seed(seed)
    made = create_method(small_config(encoder=ENCODER, method={**METHOD, **method}), SPEC)
    assert isinstance(made, HeartLang)
    return made.double()


def asked(method: HeartLang, rows: slice = slice(0, B)) -> dict[str, torch.Tensor]:
    return method.inputs(first.batch(rows), None, Draws(0, 3, rows))


def test_half_of_the_beats_that_are_there_are_hidden_each_alike() -> None:
    mask = torch.zeros(4000, 40, dtype=torch.bool)
    mask[:, :20], mask[0], mask[1], mask[2] = True, False, False, False
    mask[1, 7], mask[2, 3], mask[2, 9] = True, True, True
    draw = torch.from_numpy(Draws(0, 0, slice(0, 4000)).uniform("hidden beats", 40))
    hidden = hide_beats(mask, draw, 0.5)
    assert not (hidden & ~mask).any()
    assert hidden.sum(dim=1).tolist() == [0, 0, 1] + [10] * 3997
    assert (hidden[3:, :20].double().mean(dim=0) - 0.5).abs().max() < 0.04
    few = hide_beats(mask, draw, 1e-6)
    assert few.sum(dim=1).tolist() == [0, 0] + [1] * 3998


def by_hand(method: HeartLang, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Record after record, nothing padded; beat after beat, as the formula stands."""
    given = first.batch()
    everything = method.ecg.cut(*map(torch.from_numpy, (given.signal, given.lead_mask, given.valid_samples)))
    hidden = hide_beats(everything.mask, inputs["draw"], 0.5)
    errors, right, names = [], [], []
    for row in (0, 1, 2):
        beats = first.alone(everything, row)
        there = everything.mask[row].unflatten(0, (12, -1)).any(dim=0)
        here = hidden[row].unflatten(0, (12, -1))[:, there].flatten()
        namer = method.quantiser
        said = namer.words.to_code(namer.ecg.encode(namer.ecg.of_beat(beats.values), beats))  # type: ignore[operator, union-attr]
        states = method.ecg.of_beat(beats.values)
        states = torch.stack([method.mask_token if here[t] else states[0, t] for t in range(len(here))])[None]
        states = method.ecg.encode(states, beats)[0]
        for t in here.nonzero()[:, 0].tolist():
            name = int(torch.cosine_similarity(said[0, t][None], namer.words.book.words).argmax())  # type: ignore[arg-type, union-attr]
            odds = states[t] @ method.of_state.weight.T + method.of_state.bias
            errors.append(-torch.log(odds[name].exp() / odds.exp().sum()))
            right.append(float(odds.argmax() == name))
            names.append(name)
    shares = torch.bincount(torch.tensor(names)).double() / len(names)
    entropy = -sum(float(share) * math.log(float(share)) for share in shares if share > 0)
    loss = torch.stack(errors).mean()
    return {"loss": loss, "accuracy": torch.tensor(right).mean(), "words": torch.tensor(math.exp(entropy))}


def test_the_loss_and_its_gradients_are_the_formula_whatever_stands_where_nothing_was_recorded() -> None:
    method = make()
    inputs = asked(method)
    features = method(inputs)
    assert features["told"][3:].tolist() == [[0, 0], [0, 0]], "no beat, no count"
    found, expected = method.loss(features, inputs, None), by_hand(method, inputs)
    assert set(found.metrics) == set(expected) and found.chance is None
    for name, value in expected.items():
        assert found.metrics[name].item() == pytest.approx(value.item(), rel=1e-6), name
    assert found.metrics["words"] > 1.5
    learns = {n: p for n, p in method.named_parameters() if not n.startswith("ecg.projection")}
    assert not any(name.startswith("quantiser") for name in learns), "the quantiser is frozen"
    one, other = (torch.autograd.grad(each, list(learns.values())) for each in (found.loss, expected["loss"]))
    for name, a, b in zip(learns, one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9, msg=name)
        assert a.abs().max() > 1e-7, name


def test_what_is_hidden_is_not_seen() -> None:
    """Another beat at a hidden place changes its name, which is asked for, and no state."""
    method = make().eval()
    inputs = asked(method)
    beats = method.ecg.cut(inputs["signal"], inputs["lead_mask"], inputs.get("valid_samples"))
    hidden = hide_beats(beats.mask, inputs["draw"], 0.5)
    seen = []
    for values in (beats.values, torch.where(hidden[..., None], -3 * beats.values, beats.values)):
        tokens = method.ecg.embed(beats._replace(values=values))
        seen.append(method.ecg.encode(torch.where(hidden[..., None], method.mask_token, tokens), beats))
    assert torch.equal(seen[0][beats.mask], seen[1][beats.mask]) and hidden.any()


def test_draws_belong_to_rows() -> None:
    method = make()
    parts = [asked(method, local_slice(B, rank, 3))["draw"] for rank in range(3)]
    assert torch.equal(torch.cat(parts), asked(method)["draw"])


def stage_1(**method: Any) -> dict[str, torch.Tensor]:
    made = first.make(**method)
    made.words.book.started.fill_(1)
    return {name: tensor.float() for name, tensor in made.state_dict().items()}


def begin(weights: dict[str, torch.Tensor], **method: Any) -> tuple[HeartLang, Any]:
    config = small_config(encoder=ENCODER, method={**METHOD, **method}, **FROM)
    made = make(1, **method).float()
    encoder = small_config(encoder=first.ENCODER).encoder
    return made, initialise(made, config, Start(weights, encoder, "none", 100.0, {"checkpoint": "first"}))


def test_stage_2_holds_the_whole_of_stage_1_and_its_own_encoder_begins_anew() -> None:
    weights = stage_1()
    method, result = begin(weights)
    state = method.state_dict()
    for name in state:
        if name.startswith("quantiser."):
            assert torch.equal(state[name], weights[name.removeprefix("quantiser.")]), name
            assert name in result.loaded
    assert all(name.startswith(("ecg.", "mask_token", "of_state")) for name in result.fresh)
    assert any(name.startswith("decoder.") for name in result.skipped)
    again = make(2).float()
    config = small_config(encoder=ENCODER, method=METHOD, init_from="second")
    initialise(again, config, Start(dict(state), config.encoder, "none", 100.0, {}))
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "method", "message"),
    [
        ({}, {"words": 8}, r"quantiser\.words\.book\.words \(8, 6\): the source has shape \(7, 6\)"),
        ({}, {"quantiser": {**NAMER, "heads": 4}}, r"method\.quantiser\.heads is 4, the source was trained with 2"),
        ({"words.book.started": torch.zeros(1)}, {}, "no words yet"),
        ({"words.": None}, {}, "the start has no words for heartbeats"),
    ],
)
def test_a_stage_1_that_does_not_serve_is_refused(
    changed: dict[str, Any], method: dict[str, Any], message: str
) -> None:
    gone = tuple(name for name, value in changed.items() if value is None)
    weights = {name: changed.get(name, t) for name, t in stage_1().items() if not name.startswith(gone or "-")}
    with pytest.raises(UserError, match=message):
        begin(weights, **method)


@pytest.mark.parametrize("name", ["vit1d", "abc"])
def test_nothing_but_a_transformer_of_beats_names_them(name: str) -> None:
    with pytest.raises(UsageError, match=rf"quantiser\.name '{name}': heartbeats are named by a beat_transformer"):
        load_config("heartlang-tiny", [f"method.quantiser.name={name}"])


def test_without_a_stage_1_no_run_begins() -> None:
    config = load_config("heartlang-tiny")
    with pytest.raises(UsageError, match="method heartlang goes on from what a run of method heartlang_quantiser"):
        require_start(config)
    require_start(config.model_copy(update={"init_from": "first"}))
    require_start(load_config("heartlang-quantiser-tiny"))


@pytest.mark.parametrize("size", ["tiny", "published"])
def test_recipes_of_both_stages_fit_each_other(size: str) -> None:
    one, two = load_config(f"heartlang-quantiser-{size}"), load_config(f"heartlang-{size}")
    spec = SignalSpec(100, 10)
    with torch.device("meta"):
        quantiser, method = create_method(one, spec), create_method(two, spec)
    assert isinstance(method, HeartLang)
    theirs = quantiser.state_dict()
    for name, tensor in method.quantiser.state_dict().items():
        assert tensor.shape == theirs[name].shape, name
    assert [getattr(one.encoder, key) for key in NAMER] == [getattr(two.method.quantiser, key) for key in NAMER]  # type: ignore[attr-defined]
    assert two.init_fresh == ("ecg.",) and one.data.normalisation == two.data.normalisation


def in_stages(rank: int, world: int, values: dict[str, Any], root: Path, steps: tuple[int, int]) -> None:
    """Stage 1 and, with steps for it, stage 2 of the configuration `values`."""
    training = {**values["training"], "checkpoint_every": 1000}
    one = {**values, "encoder": first.ENCODER, "method": first.METHOD}
    train(parse_config({**one, "training": {**training, "steps": steps[0]}}), root / "first", NullObserver())
    if steps[1]:
        two = {**values, "encoder": ENCODER, "method": METHOD, **FROM, "init_from": str(root / "first")}
        train(parse_config({**two, "training": {**training, "steps": steps[1]}}), root / "second", NullObserver())


@pytest.mark.slow
@pytest.mark.processes
def test_every_topology_and_a_stop_give_the_same_run(tmp_path: Path) -> None:
    values = config_for(make_shards(tmp_path / "shards", silent=60)).resolved()
    run_ranks(1, in_stages, values, tmp_path, (3, 0), init=False, deadline=120)
    values["optimizer"]["eps"] = 1e-3
    second = {"encoder": ENCODER, "method": METHOD, **FROM, "init_from": str(tmp_path / "first")}
    run_topologies({**values, **second}, tmp_path)
    check_topologies(tmp_path, ["loss", "grad_norm"], rtol=5e-4)


@pytest.mark.slow
@pytest.mark.processes
def test_names_of_hidden_beats_are_learnt_and_the_encoder_leaves_alone(tmp_path: Path) -> None:
    values = config_for(make_shards(tmp_path / "shards", silent=60), lead_dropout=0.0, log_every=1).resolved()
    run_ranks(1, in_stages, values, tmp_path, (20, 60), init=False, deadline=180)
    lines = read_trace(tmp_path / "second")
    early, late = (np.mean([line["loss"] for line in part]) for part in (lines[:5], lines[-5:]))
    assert late < min(0.8 * early, math.log(7)) and lines[-1]["words"] > 3
    assert lines[-1]["effective_rank"] > 1.5
    encoder = load_encoder(export_run(tmp_path / "second", program=False)["path"])
    assert not any(key.startswith(("quantiser", "of_state", "mask")) for key in encoder.ecg.state_dict())
