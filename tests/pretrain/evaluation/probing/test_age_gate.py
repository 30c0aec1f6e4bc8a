"""The same signal means health at one age and disease at another: fine-tuning with an age gate learns that."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.encoders.base import EcgEncoder, create_encoder
from cardialign.pretrain.evaluation.probing.fine_tune import FineTuneOptions, classifier, fine_tune, parameter_groups
from cardialign.pretrain.evaluation.probing.linear_probe import Parts
from cardialign.pretrain.evaluation.scoring import class_auroc

RATE, T, N = 100, 200, 300
PARTS = Parts(np.arange(0, 180), np.arange(180, 220), np.arange(220, N))


def make(name: str = "cardialign", **values: object) -> EcgEncoder:
    torch.manual_seed(0)
    given = {"size": "tiny", "width": 16, "depth": 1, "heads": 2} if name == "cardialign" else {"width": 4, "heads": 2}
    return create_encoder(parse_config({"encoder": {"name": name, **given, **values}}).encoder, SignalSpec(RATE, 2))


class Ages:
    """Waves of 0.2 to 1.8 mV in V1; high are more than 0.5 at 10 days, more than 1.5 at 10 years."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        size, old = draw.uniform(0.2, 1.8, N), draw.random(N) < 0.5
        self.ages = np.where(old, 10, 10 / 365.25).astype(np.float32)
        self.truth = (size > np.where(old, 1.5, 0.5))[:, None]
        beats = np.clip(np.sin(2 * np.pi * 2 * (np.arange(T) / RATE + draw.random(N)[:, None])), 0, None) ** 8
        self.signal = (0.05 * draw.normal(size=(N, 12, T)) + beats[:, None]).astype(np.float32)
        self.signal[:, 6] *= size[:, None]

    def __call__(self, rows: np.ndarray) -> Iterator[Batch]:
        for at in range(0, len(rows), 32):
            own = rows[at : at + 32]
            b, none = len(own), np.zeros(len(own), dtype=np.int64)
            leads, valid = np.ones((b, 12), dtype=bool), np.full(b, T, dtype=np.int32)
            yield Batch(0, own, self.signal[own], leads, valid, none, self.ages[own], none.astype(np.int8), own)


@pytest.mark.slow
def test_what_is_high_for_the_age_is_learnt_only_with_the_age() -> None:
    records, found = Ages(), {}
    for where in ("none", "head", "encoder"):
        options = FineTuneOptions(lr=5e-3, epochs=14, patience=14, batch_size=32, age_gate=where)
        scores = fine_tune(make(), records, records.truth, PARTS, options).scores
        found[where] = float(class_auroc(scores, records.truth[PARTS.test]).mean())
    assert found["none"] < 0.9, "who does not know the age cannot know it from these signals"
    assert found["encoder"] > 0.95 and found["head"] > 0.95


def test_a_gate_alone_can_be_trained_and_needs_an_encoder_with_room_for_it() -> None:
    options = FineTuneOptions(train_blocks=0, age_gate="encoder")
    model = classifier(make(), 2, options)
    assert model.encoder.reads_age and parameter_groups(model, options)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "encoder.temporal.0.gates.0.weight" in trains and "head.weight" in trains
    assert not any(".blocks." in name or "patch_embedding" in name for name in trains)
    with pytest.raises(UserError, match="has no place for an age gate"):
        classifier(make("resnet1d"), 2, options)
    other = classifier(make("resnet1d"), 2, FineTuneOptions(age_gate="head"))
    signal, leads, valid = torch.randn(2, 12, T), torch.ones(2, 12, dtype=torch.bool), torch.full((2,), T)
    other.eval()
    with torch.no_grad():
        assert torch.equal(other(signal, leads, valid), other(signal, leads, valid, torch.tensor([0.1, 30.0])))
