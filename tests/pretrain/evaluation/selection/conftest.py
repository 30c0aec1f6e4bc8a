"""A shard set whose labels are planted in the signals, in three folds."""

from __future__ import annotations

import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.shard_set.shard_set import ShardSet
from tests.support.planted_source import ThreeFolds
from tests.support.small_encoder import SPEC


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("planted")
    build_shards(ThreeFolds(folder, 180), folder / "shards", SetPlan(SPEC, records_per_shard=80), workers=1)
    return ShardSet.open(folder / "shards")
