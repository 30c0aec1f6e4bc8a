"""Features of an encoder and of its floors: the same records in the same order, and weights that stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.probing.hand_features import NAMES
from cardialign.pretrain.evaluation.probing.systems import System, systems
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask, task_of_folds
from cardialign.pretrain.export.loaded import LoadedEncoder, untrained_encoder
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
