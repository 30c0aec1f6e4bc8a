"""A shard set whose labels are planted in the signals, in three folds."""

from __future__ import annotations

import dataclasses

import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from tests.support.planted_source import RECORDS_PER_PATIENT, PlantedSource
from tests.support.small_encoder import SPEC


class ThreeFolds(PlantedSource):
    def read(self, entry: Entry) -> EcgRecord:
        return dataclasses.replace(super().read(entry), fold=1 + (entry.meta["k"] // RECORDS_PER_PATIENT) % 3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("planted")
    build_shards(ThreeFolds(folder, 240), folder / "shards", SetPlan(SPEC, records_per_shard=80), workers=1)
    return ShardSet.open(folder / "shards")
