"""A shard set whose labels are planted in the signals, and the words for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.shard_set.shard_set import ShardSet
from tests.support.planted_source import PROMPTS, PlantedSource
from tests.support.small_encoder import SPEC


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("planted")
    build_shards(PlantedSource(folder), folder / "shards", SetPlan(SPEC, records_per_shard=50), workers=1)
    return ShardSet.open(folder / "shards")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "planted-v1.yaml"
    path.write_text(PROMPTS)
    return path
