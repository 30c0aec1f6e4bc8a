"""A shard set of four folds whose findings are planted, and what a study of it shares."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cardialign.cluster.studies.outcome import Setting
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from tests.support.planted_source import PROMPTS, RECORDS_PER_PATIENT, PlantedSource


class FourFolds(PlantedSource):
    def read(self, entry: Entry) -> EcgRecord:
        return dataclasses.replace(super().read(entry), fold=1 + (entry.meta["k"] // RECORDS_PER_PATIENT) % 4)


@pytest.fixture(scope="module")
def four_folds(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("study")
    made = build_shards(FourFolds(folder, 160), folder / "shards", SetPlan(SignalSpec(100, 5)), workers=1)
    return ShardSet.open(made.path)


@pytest.fixture
def planted(four_folds: ShardSet, tmp_path: Path) -> Setting:
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    return Setting(four_folds.path, str(tmp_path / "prompts.yaml"), "finding", (1, 2, 3, 4))
