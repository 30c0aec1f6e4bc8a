"""Fine-tuning: it learns, what is frozen stays, validation alone chooses, and pieces of a record count once each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.choices import ENCODERS
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.encoders.base import EcgEncoder, create_encoder
from cardialign.pretrain.evaluation.probing.fine_tune import (
    Classifier,
    FineTuneOptions,
    fine_tune,
    layers_of,
    parameter_groups,
    random_crop,
    score,
)
from cardialign.pretrain.evaluation.probing.linear_probe import Parts
from cardialign.pretrain.evaluation.scoring import class_auroc

RATE, T, N = 100.0, 200, 240
PARTS = Parts(np.arange(0, 140), np.arange(140, 180), np.arange(180, N))
SMALL = {
    "beat_transformer": {"width": 16, "depth": 2, "heads": 2},
    "s4": {"width": 16, "depth": 2},
    "resnet1d": {"width": 4, "heads": 2},
    "time_spectrum": {"width": 16, "depth": 2, "heads": 2},
    "vit1d": {"width": 16, "depth": 2, "heads": 2},
    "cardialign": {"size": "tiny", "width": 16, "depth": 2, "heads": 2},
    "conv_transformer": {"width": 16, "depth": 2, "heads": 2, "channels": 8},
}


def make(name: str = "s4", **values: Any) -> EcgEncoder:
    torch.manual_seed(0)
    return create_encoder(
        parse_config({"encoder": {"name": name, **SMALL[name], **values}}).encoder, SignalSpec(RATE, 2)
    )


def records() -> tuple[np.ndarray, np.ndarray]:
    """Two findings: large waves in V1, and twice as many beats."""
    draw = np.random.default_rng(0)
    truth = draw.random((N, 2)) < 0.4
    time = np.arange(T) / RATE
    signal = 0.1 * draw.normal(size=(N, 12, T))
    for i in range(N):
        beats = np.clip(np.sin(2 * np.pi * (4 if truth[i, 1] else 2) * (time + draw.random())), 0, None) ** 8
        signal[i] += beats
        signal[i, 6] += 1.5 * beats * truth[i, 0]
    return signal.astype(np.float32), truth


class Reader:
    """Batches from memory, and a count of how often each record was read."""

    batch = 32

    def __init__(self, signal: np.ndarray, valid: np.ndarray | None = None) -> None:
        self.signal, self.valid = signal, valid if valid is not None else np.full(len(signal), signal.shape[-1])
        self.read = np.zeros(len(signal), dtype=int)

    def __call__(self, rows: np.ndarray) -> Iterator[Batch]:
        for at in range(0, len(rows), self.batch):
            chosen = rows[at : at + self.batch]
            self.read[chosen] += 1
            b, none = len(chosen), np.zeros(len(chosen), dtype=np.int64)
            leads = np.ones((b, 12), dtype=bool)
            valid = self.valid[chosen].astype(np.int32)
            ages = np.full(b, np.nan, dtype=np.float32)
            yield Batch(0, chosen, self.signal[chosen], leads, valid, none, ages, none.astype(np.int8), chosen)


def test_it_learns_what_the_labels_say_and_the_encoder_given_stays() -> None:
    signal, truth = records()
    encoder, reader = make(), Reader(signal)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    found = fine_tune(encoder, reader, truth, PARTS, FineTuneOptions(lr=5e-3, epochs=12, patience=12, batch_size=32))
    assert class_auroc(found.scores, truth[PARTS.test]).min() > 0.9
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert (reader.read[PARTS.test] == 1).all(), "the test records are opened once"
    assert found.history[found.best_epoch - 1] == max(found.history)


def test_a_seed_decides_the_run_and_torchs_generator_stays() -> None:
    signal, truth = records()
    options = FineTuneOptions(epochs=1, batch_size=32, dropout=0.2, crop_seconds=1.0)
    encoder, state = make(), torch.get_rng_state()
    first, again = (fine_tune(encoder, Reader(signal), truth, PARTS, options).scores for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_of_test_records_decide_nothing() -> None:
    signal, truth = records()
    turned = truth.copy()
    turned[PARTS.test] = ~turned[PARTS.test]
    options = FineTuneOptions(epochs=2, batch_size=32)
    first, second = (fine_tune(make(), Reader(signal), labels, PARTS, options) for labels in (truth, turned))
    assert first.history == second.history
    np.testing.assert_array_equal(first.scores, second.scores)


@pytest.mark.slow
def test_it_stops_when_validation_gets_no_better_and_keeps_the_best_epoch() -> None:
    signal, truth = records()
    noise = np.random.default_rng(5).random(truth.shape) < 0.5
    found = fine_tune(make(), Reader(signal), noise, PARTS, FineTuneOptions(lr=1e-2, epochs=30, patience=2))
    assert len(found.history) < 30 and len(found.history) - found.best_epoch == 2


@pytest.mark.parametrize("name", sorted(ENCODERS.own))
def test_layers_are_told_by_their_names_for_every_encoder(name: str) -> None:
    encoder = make(name)
    blocks = 8 if name == "resnet1d" else 2
    layers = layers_of(encoder)
    assert set(layers.values()) == set(range(blocks + 2))
    for parameter, layer in layers.items():
        if parameter.startswith(("stem", "missing", "patch_embedding", "projection_in", "convolutions", "to_tokens")):
            assert layer == 0, parameter
        if parameter.startswith(("projection.", "pool", "feature_norm", "group_attention")):
            assert layer == blocks + 1, parameter


def test_rates_fall_with_depth_and_vectors_do_not_decay() -> None:
    model = Classifier(make(), 3, 0.0)
    groups = parameter_groups(model, FineTuneOptions(lr=1.0, layer_decay=0.5, weight_decay=0.1))
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    assert rates[id(model.head.weight)] == 1.0
    assert rates[id(model.encoder.norm.weight)] == 0.5  # type: ignore[union-attr]
    assert rates[id(model.encoder.blocks[1].mix.weight)] == 0.25  # type: ignore[union-attr,index]
    assert rates[id(model.encoder.stem.weight)] == 0.0625  # type: ignore[union-attr]
    for group in groups:
        decays = {parameter.ndim > 1 for parameter in group["params"]}  # type: ignore[attr-defined]
        assert decays == {group["weight_decay"] == 0.1}


@pytest.mark.parametrize(("blocks", "moved"), [(0, {"head", "norm"}), (1, {"head", "norm", "blocks.1"})])
def test_what_is_frozen_stays(blocks: int, moved: set[str]) -> None:
    model = Classifier(make(), 2, 0.0)
    parameter_groups(model, FineTuneOptions(train_blocks=blocks))
    trained = {name.removeprefix("encoder.") for name, p in model.named_parameters() if p.requires_grad}
    assert {".".join(name.split(".")[: 2 if "blocks" in name else 1]) for name in trained} == moved


def test_a_crop_lies_within_what_was_recorded() -> None:
    signal = torch.arange(200.0).expand(3, 12, 200)
    valid = torch.tensor([200, 60, 20])
    starts = set()
    for seed in range(40):
        cut, inside = random_crop(signal, valid, 50, np.random.default_rng(seed))
        assert cut.shape == (3, 12, 50) and inside.tolist() == [50, 50, 20]
        assert cut[1, 0, -1] < 60 and cut[2, 0, 0] == 0
        assert torch.equal(cut[0].diff(dim=-1), torch.ones(12, 49))
        starts.add(int(cut[0, 0, 0]))
    assert len(starts) > 20 and min(starts) >= 0 and max(starts) <= 150


@torch.no_grad()
def test_a_score_over_pieces_is_the_mean_of_the_scores_of_its_whole_pieces() -> None:
    signal, _ = records()
    valid = np.full(N, T)
    valid[0], valid[1], valid[3] = 120, 50, 30
    model = Classifier(make(), 2, 0.0).eval()
    found = score(model, Reader(signal, valid), np.arange(4), 0.5)

    def piece(row: int, start: int, length: int = 50) -> np.ndarray:
        x = torch.zeros(1, 12, 50)
        x[..., :length] = torch.from_numpy(signal[row : row + 1, :, start : start + length])
        return model(x, torch.ones(1, 12, dtype=torch.bool), torch.tensor([length])).double().numpy()[0]

    np.testing.assert_allclose(found[2], np.mean([piece(2, s) for s in (0, 50, 100, 150)], axis=0), atol=1e-5)
    np.testing.assert_allclose(found[0], np.mean([piece(0, 0), piece(0, 50)], axis=0), atol=1e-5)
    np.testing.assert_allclose(found[1], piece(1, 0), atol=1e-5)
    np.testing.assert_allclose(found[3], piece(3, 0, 30), atol=1e-5, err_msg="shorter than a piece")


def test_validation_records_that_rank_nothing_are_refused() -> None:
    signal, truth = records()
    truth[PARTS.validation] = False
    with pytest.raises(ValueError, match="both in training and in validation"):
        fine_tune(make(), Reader(signal), truth, PARTS, FineTuneOptions(epochs=1))


def test_a_class_that_training_cannot_show_counts_as_in_a_probe_and_is_named() -> None:
    signal, truth = records()
    truth[PARTS.train, 1] = False
    found = fine_tune(make(), Reader(signal), truth, PARTS, FineTuneOptions(epochs=1))
    assert found.unseen == (1,) and (found.scores[:, 1] == 0).all() and np.ptp(found.scores[:, 0]) > 0
    truth[PARTS.train] = True
    with pytest.raises(ValueError, match="positives and negatives both in training and in validation"):
        fine_tune(make(), Reader(signal), truth, PARTS, FineTuneOptions(epochs=1))


def test_training_that_diverges_is_told_with_the_way_out() -> None:
    signal, truth = records()
    with pytest.raises(UserError, match=r"diverged: after epoch 1(.|\n)*--set lr=") as caught:
        encoder = make()
        with torch.no_grad():
            next(encoder.parameters()).fill_(float("nan"))
        fine_tune(encoder, Reader(signal), truth, PARTS, FineTuneOptions(epochs=2))
    assert not isinstance(caught.value, UsageError)


def test_probabilities_of_pieces_are_averaged_where_a_protocol_says_so() -> None:
    read = Reader(records()[0])
    torch.manual_seed(0)
    model = Classifier(make(), 2, 0.0).eval()
    signal, leads = torch.from_numpy(records()[0][:6]), torch.ones(6, 12, dtype=torch.bool)
    model.head.weight.data *= 200  # far from where the sigmoid is straight
    with torch.no_grad():
        model.head.bias -= model(signal, leads, torch.full((6,), T)).mean(dim=0)
    rows = np.arange(6)
    found = score(model, read, rows, 1.0, "probabilities")
    with torch.no_grad():
        pieces = [model(signal[..., first : first + 100], leads, torch.full((6,), 100)) for first in (0, 100)]
    by_hand = (pieces[0].sigmoid() + pieces[1].sigmoid()) / 2
    np.testing.assert_allclose(found, by_hand.numpy(), atol=1e-5)
    assert np.abs(found - expit(score(model, read, rows, 1.0))).max() > 1e-3


def test_blocks_are_those_that_an_encoder_names_and_none_are_guessed() -> None:
    encoder = make()
    encoder.block_list = "stages"
    options = FineTuneOptions(train_blocks=1)
    with pytest.raises(UserError, match=r"does not say which of its layers are its blocks(.|\n)*train_blocks=null"):
        parameter_groups(Classifier(encoder, 2, 0.0), options)
    assert parameter_groups(Classifier(make(), 2, 0.0), options)
