"""A label set says which codes of its records it has no class for, and when an older table made it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.checks.label_coverage import LabelCoverage, label_coverage, open_classes
from cardialign.data_shards.checks.statistics import set_statistics
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.vocabularies import snomed
from cardialign.pretrain.evaluation.task import labelled_task
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


ST_CHANGE, HIGH_VOLTAGE, AV_BLOCK, DIFFUSE_BLOCK, T_CHANGE = (
    "55930002", "55827005", "233917008", "82226007", "164934002",
)  # fmt: skip


@pytest.mark.parametrize(
    ("code", "label_set", "classes"),
    [
        (ST_CHANGE, "chapman", {"STDD", "STTU"}),
        (ST_CHANGE, "cpsc2018", {"STD", "STE"}),
        (HIGH_VOLTAGE, "chapman", {"LVH"}),
        (AV_BLOCK, "chapman", {"1AVB", "2AVB", "2AVB1", "2AVB2", "3AVB"}),
        (AV_BLOCK, "challenge", {"IAVB"}),
        (DIFFUSE_BLOCK, "chapman", {"IDC", "LBBB", "RBBB"}),
        (T_CHANGE, "challenge", {"TInv"}),
        ("426783006", "chapman", set()),  # sinus rhythm says nothing of ST, and leaves nothing open by it
    ],
)
def test_a_code_that_does_not_exclude_a_finding_leaves_it_open(code: str, label_set: str, classes: set[str]) -> None:
    assert set(snomed.left_open(label_set).get(code, ())) == classes
    assert not classes & set(snomed.LABEL_SETS[label_set].get(code, ()))


class Open(SmallSource):
    """ST changes alone, beside ST elevation, and none of it; made by the table of this release."""

    label_sets = ("snomed", "chapman")
    codes = ((ST_CHANGE, "426177001"), (ST_CHANGE, "164931005"), ("426177001",))

    def read(self, entry: Entry) -> EcgRecord:
        record = super().read(entry)
        codes = self.codes[entry.meta["number"] % 3]
        record.labels = {"snomed": codes, "chapman": snomed.classes(codes, snomed.CHAPMAN)}
        return record


def test_records_whose_codes_leave_a_class_open_are_counted_for_it(tmp_path: Path) -> None:
    build_shards(Open(12, samples=50), tmp_path / "set", SetPlan(SignalSpec(500, 0.1)), workers=1)
    shards = ShardSet.open(tmp_path / "set")
    rows = np.arange(12)
    codes, has, _ = shards.labels(rows, "snomed")
    alone = has[:, codes.index(ST_CHANGE)] & ~has[:, codes.index("164931005")]
    assert alone.sum() == 4
    left_open = open_classes(shards, rows, "chapman")
    assert set(left_open) == {"STDD", "STTU"}
    np.testing.assert_array_equal(left_open["STTU"], alone)
    assert left_open["STDD"].sum() == 8, "ST elevation does not exclude a depression in other leads"
    assert label_coverage(shards, rows, "chapman").undecided == {"STDD": 8, "STTU": 4}
    assert open_classes(shards, rows, "snomed") == {}
    task = labelled_task(shards, "csn-chapman-v2")
    at = [entry.code for entry in task.prompts.classes].index("STTU")
    assert task.decided is not None and task.decided.sum() < task.decided.size
    np.testing.assert_array_equal(task.decided[:, at], ~alone)
    assert not task.truth[alone, at].any() and task.truth[:, at].sum() == 4
