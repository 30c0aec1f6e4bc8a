"""Probe tasks: the right records on the right side, once each, and patients on both sides told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.probing.subsets import subset
from cardialign.pretrain.evaluation.probing.tasks import task_of_folds, task_of_protocol
from tests.support.published_files import make_set, write_label_files
from tests.support.small_encoder import SPEC

LABEL_SET = "finding"
CSN = [f"JS{i:05d}" for i in range(1, 25)]


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


def test_without_test_folds_no_test_record_is_in_the_task(shards: ShardSet) -> None:
    task = task_of_folds(shards, LABEL_SET, [1], [2], [])
    assert not len(task.parts.test) and folds_of(shards, task.rows) == {1, 2}


def test_a_published_subset_counts_in_the_order_of_the_published_file(tmp_path: Path) -> None:
    """The files of CSN do not list its records in the order in which a shard set holds them."""
    names = CSN
    make_set(tmp_path, "csn", names, SPEC)
    given = {"train": [names[k] for k in (9, 2, 7, 0, 5, 3)], "val": names[10:14], "test": names[14:20]}
    for part, chosen in given.items():
        labels = write_label_files(tmp_path / "labels", "csn", part, chosen)
    opened = ShardSet.open(tmp_path / "set")
    task = task_of_protocol("merl-v1:csn", opened, labels)
    assert [opened.key(int(row)).partition("-")[2] for row in task.rows[task.parts.train]] == given["train"]
    truths = task.truth[task.parts.train]
    published = subset(truths, 0.5, "published-42", 0)
    expected, _ = train_test_split(given["train"], train_size=0.5, random_state=42)
    found = [opened.key(int(row)).partition("-")[2] for row in task.rows[task.parts.train[published]]]
    assert sorted(found) == sorted(expected)


def test_a_record_in_two_label_files_is_named(tmp_path: Path) -> None:
    names = CSN
    make_set(tmp_path, "csn", names, SPEC)
    for part, chosen in {"train": names[:8], "val": names[7:12], "test": names[12:18]}.items():
        labels = write_label_files(tmp_path / "labels", "csn", part, chosen)
    with pytest.raises(DataError, match=f"1 records are in two of train, validation and test.*{names[7]}"):
        task_of_protocol("merl-v1:csn", ShardSet.open(tmp_path / "set"), labels)
