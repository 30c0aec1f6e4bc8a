"""A label set says which codes of its records it has no class for, and when an older table made it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.checks.label_coverage import LabelCoverage, label_coverage
from cardialign.data_shards.checks.statistics import set_statistics
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from tests.support.small_source import SmallSource

INCOMPLETE_RBBB, COMPLETE_RBBB, RBBB, OTHER = "713426002", "713427006", "59118001", "999000999"


class Coded(SmallSource):
    """Records of known codes, with the acronyms that a table of before gave them: it knew one code of RBBB."""

    label_sets = ("snomed", "chapman")
    codes = ((RBBB,), (COMPLETE_RBBB,), (COMPLETE_RBBB, INCOMPLETE_RBBB), (INCOMPLETE_RBBB, OTHER))

    def read(self, entry: Entry) -> EcgRecord:
        record = super().read(entry)
        codes = self.codes[entry.meta["number"] % 4]
        record.labels = {"snomed": codes, "chapman": ("RBBB",) if RBBB in codes else ("SR",)}
        return record


def made(folder: Path) -> ShardSet:
    build_shards(Coded(12, samples=50), folder / "set", SetPlan(SignalSpec(500, 0.1)), workers=1)
    return ShardSet.open(folder / "set")


def test_codes_without_a_class_and_classes_that_are_missing_are_counted(tmp_path: Path) -> None:
    shards = made(tmp_path)
    unknown = {f"{INCOMPLETE_RBBB} IRBBB": 6, OTHER: 3}
    assert label_coverage(shards, np.arange(12), "chapman") == LabelCoverage(unknown, {"RBBB": 6})
    assert label_coverage(shards, np.arange(4), "chapman").outdated == {"RBBB": 2}
    assert label_coverage(shards, np.arange(12), "snomed") == LabelCoverage()
    figures = set_statistics(shards)["labels"]
    assert figures["chapman"]["unknown"] == unknown and figures["chapman"]["outdated"] == {"RBBB": 6}
    assert figures["snomed"]["unknown"] == {}
