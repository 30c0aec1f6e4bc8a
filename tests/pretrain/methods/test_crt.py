"""What is dropped is what the program drops, the loss is the formula, and it learns to tell what is gone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import load_config, parse_config
from cardialign.pretrain.export.from_run import export_run
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.crt import Crt
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.loop import train
from tests.support.processes import run_ranks
from tests.support.small_encoder import SPEC, small_config
from tests.support.tiny_shards import config_for, make_shards
from tests.support.topology import check_topologies, run_topologies

ENCODER = {"name": "time_spectrum", "width": 16, "depth": 1, "heads": 2, "patch_ms": 100, "embedding_dim": 8}
METHOD = {"name": "crt", "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2, "constraint": 0.5}
B, N, M, K, STEP = 6, 20, 10, 10, 3
"""20 patches of time, 10 of magnitude, 10 of phase."""
DOMAINS = ("time", "magnitude", "phase")


def make(encoder: dict[str, Any] | None = None, **method: Any) -> Crt:
    torch.manual_seed(0)
    made = create_method(small_config(encoder={**ENCODER, **(encoder or {})}, method={**METHOD, **method}), SPEC)
    assert isinstance(made, Crt)
    return made.double()


def batch() -> Batch:
    """Record 1 lacks leads, 2 ends inside patch 9, 3 has no lead, 4 no sample."""
    generator, rows = np.random.default_rng(0), np.arange(B)
    mask = np.ones((B, 12), dtype=bool)
    mask[1, 4:], mask[3] = False, False
    valid = np.full(B, 200, dtype=np.int32)
    valid[2], valid[4] = 95, 0
    signal = generator.normal(size=(B, 12, 200)).astype(np.float32)
    return Batch(1, rows, signal, mask, valid, rows, np.zeros(B, np.float32), np.zeros(B, np.int8), rows)


def asked(method: Crt, step: int = STEP, given: Batch | None = None, rows: slice = slice(0, B)) -> dict[str, Any]:
    return method.inputs(given or batch(), None, Draws(0, step, rows))


def test_as_much_is_dropped_as_the_program_drops_and_more_with_every_step() -> None:
    rising = make(share_steps=100)
    assert [rising.dropped(step)[0] for step in (0, 30, 45, 79, 80, 500)] == [6, 6, 9, 15, 16, 16]
    assert rising.dropped(45) == (9, 4, 4) and make().dropped(0) == (16, 8, 8)
    assert make(last_share=0.999).dropped(0) == (19, 9, 9) and make(first_share=0.001).dropped(0) == (16, 8, 8)
    inputs = asked(rising, 45)
    for name, patches, off in (("time", N, 9), ("spectrum", M, 4)):
        kept, dropped = inputs[f"{name}_kept"], inputs[f"{name}_dropped"]
        assert dropped.shape == (B, off) and kept.shape == (B, patches - off)
        assert (torch.cat([kept, dropped], dim=1).sort(dim=1)[0] == torch.arange(patches)).all()
        assert len({tuple(row) for row in dropped.tolist()}) > 3, "each record its own"
    places = rising.places(inputs, "dropped")
    assert torch.equal(places[1] + M, places[2]), "a frequency goes with both of its numbers"
    counts = inputs["recorded"].sum(dim=1).tolist()
    assert counts == [N + 2 * M, N + 2 * M, 9 + 2 * M, 0, 0, N + 2 * M]
    parts = []
    for rank in range(3):
        rows, full = local_slice(B, rank, 3), batch()
        names = ("rows", "signal", "lead_mask", "valid_samples", "report", "age_years", "sex")
        own = {name: getattr(full, name)[rows] for name in names}
        parts.append(asked(rising, 45, dataclasses.replace(full, **own), rows))
    for name in ("time_kept", "spectrum_dropped", "recorded"):
        assert torch.equal(torch.cat([part[name] for part in parts]), inputs[name]), name


def by_hand(method: Crt, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Record after record, nothing padded and nothing masked; patch after patch, lead after lead."""
    given, eps = batch(), torch.finfo(torch.float64).eps
    errors: dict[str, list[torch.Tensor]] = {name: [] for name in DOMAINS}
    constraints = []
    for row in (0, 1, 2, 5):
        signal = torch.from_numpy(given.signal[row]).double()
        leads = torch.from_numpy(given.lead_mask[row])
        whole = given.valid_samples[row] // K
        signal[~leads], signal[:, given.valid_samples[row] :] = 0.0, 0.0
        found = torch.fft.fft(signal, norm="ortho")[:, :100]
        heard = found.abs() > eps
        values = [signal, found.abs(), torch.where(heard, found.angle() / torch.pi, 0.0)]
        wanted = torch.cat([each.unflatten(1, (-1, K)).transpose(0, 1) for each in values])  # (40, 12, K)
        layers, tokens = method.ecg.to_tokens, []
        for place in range(N + 2 * M):
            domain = 0 if place < N else 1 if place < N + M else 2
            made = layers.patches[domain](wanted[place].reshape(1, 1, -1), leads[None])[0, 0]
            tokens.append(made + layers.domain[domain])
        seconds = [0.1 * k + 0.05 for k in [*range(N), *range(M), *range(M)]]
        kept, dropped = ([p for d in method.places(inputs, w) for p in d[row].tolist()] for w in ("kept", "dropped"))
        there = {p for p in range(N + 2 * M) if p >= N or p < whole}
        kept, dropped = ([p for p in each if p in there] for each in (kept, dropped))
        sequence = torch.stack([*(layers.summary + layers.domain), *(tokens[p] for p in kept)])
        times = torch.tensor([0.0, 0.0, 0.0, *(seconds[p] for p in kept)])
        encoded = method.ecg.temporal(sequence[None], times, None)[0]
        small = encoded @ method.to_decoder.weight.T + method.to_decoder.bias
        domain_of = [0 if p < N else 1 if p < N + M else 2 for p in dropped]
        longer = torch.cat([small, method.mask_token[domain_of]])
        decoded = method.decoder(longer[None], torch.cat([times, torch.tensor([seconds[p] for p in dropped])]), None)[0]
        told = [*zip(kept, small[3:], strict=True), *zip(dropped, decoded[len(small) :], strict=True)]
        for place, token in told:
            domain = 0 if place < N else 1 if place < N + M else 2
            guess = method.to_values[domain](token).unflatten(0, (12, K))
            errors[DOMAINS[domain]].append((guess - wanted[place]).square().mean(dim=1)[leads])
        before, after = method.of_token(sequence[3:]), method.of_state(encoded[3:])
        scores = torch.cosine_similarity(before[:, None], after[None], dim=-1).exp()
        constraints.append(torch.log(scores.sum() - scores.diagonal().sum()))
    every = torch.cat([one for name in DOMAINS for one in errors[name]])
    result = {name: torch.cat(errors[name]).mean() for name in DOMAINS}
    result |= {"reconstruction": every.mean(), "constraint": torch.stack(constraints).mean()}
    return {"loss": result["reconstruction"] + 0.5 * result["constraint"], **result}


@pytest.mark.parametrize("step", [0, 9])
def test_the_loss_and_its_gradients_are_the_formula(step: int) -> None:
    method = make(share_steps=10)
    inputs = asked(method, step)
    found, expected = method.loss(method(inputs), inputs, None), by_hand(method, inputs)
    assert set(found.metrics) == set(expected) and found.chance is None
    for name, value in expected.items():
        assert found.metrics[name].item() == pytest.approx(value.item(), rel=1e-5), name
    learns = {name: p for name, p in method.named_parameters() if not name.startswith("ecg.projection")}
    one, other = (torch.autograd.grad(each, list(learns.values())) for each in (found.loss, expected["loss"]))
    for name, a, b in zip(learns, one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7, msg=name)
        assert a.abs().max() > 1e-6, name


def test_what_is_dropped_cannot_be_seen_and_what_was_not_recorded_says_nothing() -> None:
    method, given = make(), batch()
    inputs = asked(method)
    features = method(inputs)
    for name, count in method.counts(inputs).items():
        assert torch.equal(count.double(), features[name][:, 1]), name
    nothing = {name: each[3:5] for name, each in features.items()}
    assert not any(nothing[name].any() for name in (*DOMAINS, "constraint"))
    assert method.loss(nothing, {name: each[3:5] for name, each in inputs.items()}, None).loss == 0
    signal = given.signal.copy()
    signal[1, 4:], signal[2, :, 95:], signal[3], signal[4] = np.nan, 50.0, np.nan, np.inf
    other = method(asked(method, given=dataclasses.replace(given, signal=signal)))
    for name, values in features.items():
        torch.testing.assert_close(values, other[name], rtol=0, atol=0)
    values, dropped = method.ecg.patch_values, torch.cat(method.places(inputs, "dropped"), dim=1)
    gone = torch.zeros(B, N + 2 * M, dtype=torch.bool).scatter_(1, dropped, True)[..., None]
    method.ecg.patch_values = lambda *a: values(*a) + 3.0 * gone  # type: ignore[method-assign]
    changed = method(inputs)
    assert torch.equal(changed["ecg"], features["ecg"]) and torch.equal(changed["constraint"], features["constraint"])
    assert (changed["phase"] != features["phase"])[[0, 1, 2, 5], 0].all()


def test_a_record_alone_gives_what_it_gives_among_others() -> None:
    method = make({"patch_layer": "resnet18", "patch_ms": 200})
    inputs = asked(method)
    together = method(inputs)
    for row in range(B):
        alone = method({name: each[row : row + 1] for name, each in inputs.items()})
        for name, values in together.items():
            torch.testing.assert_close(alone[name][0], values[row], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("encoder", "method", "message"),
    [
        ({"name": "vit1d"}, {}, "set encoder.name to time_spectrum"),
        ({"patch_ms": 600}, {}, "half a record of 200 samples has 1 patches of 60 shorten encoder.patch_ms"),
        ({}, {"first_share": 0.9}, "first_share 0.9 is above last_share 0.8"),
        ({}, {"decoder_heads": 3}, "not a multiple of decoder_heads 3"),
    ],
)
def test_what_cannot_be_dropped_is_refused(encoder: dict[str, Any], method: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make({**encoder}, **method)
    assert message in f"{caught.value.problem} {caught.value.remedy}"


def test_the_published_recipe_has_the_published_tokens() -> None:
    """5,000 samples and 2,500 frequencies, twenty at a time, 128 wide."""
    method = create_method(load_config("crt-published", ["encoder.patch_layer=linear"]), SignalSpec(500, 10))
    assert isinstance(method, Crt) and method.patches == (250, 125, 125)
    assert method.dropped(0) == (75, 37, 37) and method.dropped(10**6) == (200, 100, 100)
    assert load_config("crt-tiny").method.name == "crt"


@pytest.mark.slow
@pytest.mark.processes
def test_every_topology_and_a_stop_give_the_same_run(tmp_path: Path) -> None:
    values = config_for(make_shards(tmp_path / "shards", silent=60)).resolved()
    values["optimizer"]["eps"] = 1e-3
    run_topologies({**values, "encoder": ENCODER, "method": {**METHOD, "share_steps": 5}}, tmp_path)
    check_topologies(tmp_path, ["loss", "constraint", "grad_norm"], rtol=5e-4)


def learn(rank: int, world: int, shards: Path, root: Path) -> None:
    base = config_for(shards, steps=40, checkpoint_every=40, lead_dropout=0.0, log_every=1).resolved()
    changed = {
        "encoder": {**ENCODER, "width": 32},
        "method": {**METHOD, "decoder_width": 32, "last_share": 0.5, "constraint": 1e-4},
        "optimizer": {"lr": 5e-3},
        "data": {**base["data"], "normalisation": "zscore"},
    }
    train(parse_config({**base, **changed}), root, NullObserver())


@pytest.mark.slow
@pytest.mark.processes
def test_it_learns_to_tell_what_is_gone_records_stay_apart_and_the_encoder_leaves_alone(tmp_path: Path) -> None:
    run_ranks(1, learn, make_shards(tmp_path / "shards", silent=60), tmp_path / "run", init=False, deadline=120)
    lines = read_trace(tmp_path / "run")
    assert np.mean([line["time"] for line in lines[-5:]]) < 0.7, "a line at the mean would stand at 1"
    assert np.mean([line["magnitude"] for line in lines[-5:]]) < np.mean([line["magnitude"] for line in lines[:5]])
    assert lines[-1]["effective_rank"] > 2.0
    encoder = load_encoder(export_run(tmp_path / "run", program=False)["path"])
    assert not any(key.startswith(("decoder", "of_", "to_values", "mask_token")) for key in encoder.ecg.state_dict())
