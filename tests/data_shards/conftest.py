"""A small shard set, built once per session from the small source; tests that damage it work on a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from tests.support.small_source import SmallSource


@pytest.fixture(scope="session")
def small_set_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small") / "set"
    build_shards(SmallSource(90, bad=(3, 40)), out, SetPlan(SignalSpec(500, 1), records_per_shard=32), workers=1)
    return out


@pytest.fixture
def small_set(small_set_folder: Path) -> ShardSet:
    return ShardSet.open(small_set_folder)


@pytest.fixture
def set_copy(small_set_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_set_folder, tmp_path / "copy"))
