"""Features of an encoder and of its floors: the same records in the same order, and weights that stay."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from cardialign.pretrain.evaluation.features import EmbeddedSet
from cardialign.pretrain.evaluation.probing.hand_features import NAMES
from cardialign.pretrain.evaluation.probing.linear_probe import probe
from cardialign.pretrain.evaluation.probing.systems import System, systems
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask, task_of_folds
from cardialign.pretrain.evaluation.windows import Crop
from cardialign.pretrain.export.loaded import LoadedEncoder, untrained_encoder
from tests.support.planted_source import ThreeFolds
from tests.support.small_encoder import SPEC, small_config


@pytest.fixture(scope="module")
def encoder() -> LoadedEncoder:
    return untrained_encoder(small_config(), SPEC, seed=1, with_reports=False)


@pytest.fixture(scope="module")
def task(shards: ShardSet) -> ProbeTask:
    return task_of_folds(shards, "finding", [1], [2], [3])


@pytest.fixture(scope="module")
def found(encoder: LoadedEncoder, shards: ShardSet, task: ProbeTask) -> dict[str, System]:
    return {each.name: each for each in systems(encoder, shards, task)}


def test_every_system_has_one_row_per_record_in_the_tasks_order(
    found: dict[str, System], encoder: LoadedEncoder, shards: ShardSet, task: ProbeTask
) -> None:
    assert list(found) == ["encoder", "untrained", "random-kernels", "hand-features"]
    assert all(len(each.features) == len(task.rows) and np.isfinite(each.features).all() for each in found.values())
    assert found["hand-features"].features.shape[1] == len(NAMES)
    for place in (0, 57, len(task.rows) - 1):
        record = shards.read_record(task.rows[place])
        alone = encoder.encode(record.millivolts()[None], record.lead_mask[None]).features.numpy()[0]
        np.testing.assert_allclose(found["encoder"].features[place], alone, atol=1e-5)


def test_digests_say_which_weights_were_read(found: dict[str, System], encoder: LoadedEncoder) -> None:
    assert found["encoder"].digest == encoder.weights_digest() != found["untrained"].digest
    assert found["random-kernels"].digest is None
    with torch.no_grad():
        parameter = next(encoder.ecg.parameters())
        parameter.view(-1)[0] += 1e-3
        assert encoder.weights_digest() != found["encoder"].digest
        parameter.view(-1)[0] -= 1e-3


def test_only_the_floors_that_are_asked_for_are_measured(
    encoder: LoadedEncoder, shards: ShardSet, task: ProbeTask
) -> None:
    assert [each.name for each in systems(encoder, shards, task, ())] == ["encoder"]
    assert [each.name for each in systems(encoder, shards, task, ("hand-features",))] == ["encoder", "hand-features"]
    with pytest.raises(UsageError, match="unknown floor 'ceiling'"):
        systems(encoder, shards, task, ("ceiling",))


def test_a_record_with_features_that_are_not_finite_is_named(
    encoder: LoadedEncoder, shards: ShardSet, task: ProbeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = System("encoder", np.ones((len(task.rows), 2), dtype=np.float32))
    broken.features[5, 1] = np.inf
    embedded = EmbeddedSet(task.rows, broken.features, broken.features)
    monkeypatch.setattr("cardialign.pretrain.evaluation.probing.systems.embed_set", lambda *_: [embedded])
    with pytest.raises(UserError, match=rf"encoder gives 1 of \d+ records .* not finite \(first: {shards.key(5)}\)"):
        systems(encoder, shards, task, ())


def test_of_a_task_that_cuts_records_the_encoder_reads_the_pieces(
    encoder: LoadedEncoder, shards: ShardSet, task: ProbeTask
) -> None:
    features = systems(encoder, shards, dataclasses.replace(task, crop=Crop(1.0, "probabilities")), ())[0].features
    whole = systems(encoder, shards, dataclasses.replace(task, crop=Crop(1.0, "features")), ())[0].features
    record = shards.read_record(task.rows[3])
    for piece, start in enumerate((0, 100)):
        signal = np.zeros((1, 12, SPEC.samples), dtype=np.float32)
        signal[0, :, :100] = record.millivolts()[:, start : start + 100]
        alone = encoder.encode(signal, record.lead_mask[None], valid_samples=np.array([100]))
        np.testing.assert_allclose(features[3, piece], alone.features.numpy()[0], atol=1e-5)
    np.testing.assert_allclose(whole[3], features[3].mean(axis=0), atol=1e-5)


def test_a_piece_without_signal_is_no_broken_record_and_one_with_a_single_wrong_number_is(
    encoder: LoadedEncoder, shards: ShardSet, task: ProbeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = dataclasses.replace(task, crop=Crop(0.8, "probabilities"))
    features = np.ones((len(task.rows), 2, 3), dtype=np.float32)
    features[4, 1] = np.nan
    embedded = EmbeddedSet(task.rows, features, features)
    monkeypatch.setattr("cardialign.pretrain.evaluation.probing.systems.embed_set", lambda *_: [embedded])
    assert systems(encoder, shards, cut, ())[0].features.shape == features.shape
    name = shards.key(task.rows[7])
    for place in ((7, 1, 0), (7, 0, slice(None))):
        features[place] = np.nan
        with pytest.raises(UserError, match=rf"encoder gives 1 of \d+ records .* \(first: {name}\)"):
            systems(encoder, shards, cut, ())
        features[7] = 1


def test_leads_that_were_not_recorded_leave_finite_features(tmp_path: Path, encoder: LoadedEncoder) -> None:
    """Limb leads alone: kernels see nothing of the others, and hand features of them are filled."""

    class LimbLeads(ThreeFolds):
        def read(self, entry: Entry) -> EcgRecord:
            return dataclasses.replace(super().read(entry), lead_mask=np.arange(12) < 6)

    build_shards(LimbLeads(tmp_path, 60), tmp_path / "set", SetPlan(SPEC), workers=1)
    limbs = ShardSet.open(tmp_path / "set")
    task = task_of_folds(limbs, "finding", [1], [2], [3])
    assert not limbs.lead_masks(task.rows)[:, 6:].any()
    found = systems(encoder, limbs, task)
    assert all(np.isfinite(each.features).all() for each in found)
    for each in found:
        assert np.isfinite(probe(each.features, task.truth, task.parts).scores).all()
