"""A shard set whose labels are planted in the signals, and a small encoder with fresh weights."""

from __future__ import annotations

import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.export.loaded import LoadedEncoder, untrained_encoder
from tests.support.planted_source import PlantedSource
from tests.support.small_encoder import SPEC, small_config


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("planted")
    build_shards(PlantedSource(folder), folder / "shards", SetPlan(SPEC, records_per_shard=50), workers=1)
    return ShardSet.open(folder / "shards")


@pytest.fixture(scope="module")
def encoder() -> LoadedEncoder:
    return untrained_encoder(small_config(), SPEC, seed=0)
