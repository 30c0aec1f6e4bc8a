"""Probe tasks: the right records on the right side, once each, and patients on both sides told."""

from __future__ import annotations

import numpy as np
import pytest

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.probing.tasks import task_of_folds

LABEL_SET = "finding"


def folds_of(shards: ShardSet, rows: np.ndarray) -> set[int]:
    return {int(shards.read_metadata(row)["fold"]) for row in rows}


def test_every_part_holds_the_labelled_records_of_its_folds_and_their_own_labels(shards: ShardSet) -> None:
    task = task_of_folds(shards, LABEL_SET, [1], [2], [3])
    for part, fold in ((task.parts.train, 1), (task.parts.validation, 2), (task.parts.test, 3)):
        rows = task.rows[part]
        assert len(rows) and folds_of(shards, rows) == {fold}
        for row, truth in zip(rows, task.truth[part], strict=True):
            codes = {code for (code, _), is_true in zip(task.names, truth, strict=True) if is_true}
            assert codes == set(shards.read_record(row).labels[LABEL_SET])
    sizes = [len(part) for part in (task.parts.train, task.parts.validation, task.parts.test)]
    assert list(task.about["records"].values()) == sizes and sum(sizes) == len(task.rows) == 240 - 240 // 7


def test_patients_on_both_sides_are_counted(shards: ShardSet) -> None:
    task = task_of_folds(shards, LABEL_SET, [1], [2], [3])
    sides = [set(task.patients[part].tolist()) for part in (task.parts.train, task.parts.test)]
    assert task.about["test_patients_in_training"] == len(sides[0] & sides[1])


def test_a_fold_on_two_sides_is_refused(shards: ShardSet) -> None:
    with pytest.raises(UsageError, match="fold 2 is in two of"):
        task_of_folds(shards, LABEL_SET, [1, 2], [2], [3])


def test_a_part_without_records_and_an_unknown_label_set_are_refused(shards: ShardSet) -> None:
    with pytest.raises(DataError):
        task_of_folds(shards, LABEL_SET, [1], [2], [77])
    with pytest.raises(DataError, match="no label set 'nobody'"):
        task_of_folds(shards, "nobody", [1], [2], [3])
