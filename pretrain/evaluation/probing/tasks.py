"""What a probe learns from, chooses by and is scored on: three parts of the labelled records of one shard set.

Legend: n records, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.features import EmbedOptions
from cardialign.pretrain.evaluation.probing.linear_probe import Parts
from cardialign.pretrain.evaluation.protocols import load_task, open_task
from cardialign.pretrain.evaluation.scoring import decided_at
from cardialign.pretrain.evaluation.task import EvaluationTask, decided_records
from cardialign.pretrain.evaluation.windows import Crop

log = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
NAMED = 5
"""Records that a message names."""


@dataclass(frozen=True)
class ProbeTask:
    """rows int64 (n,) ascending, truth bool (n, C), patients (n,); names: code and words of each class.

    about: which labels, folds or protocol these are, and how many patients are on both sides. crop: how each record
    is cut into pieces, None where it is read whole. decided: bool (n, C), False where a record's codes leave the class
    open, so that it is neither learnt nor scored for it; None = each is a positive or a negative of every class.
    """

    name: str
    names: list[tuple[str, str]]
    rows: np.ndarray
    truth: np.ndarray
    patients: np.ndarray
    parts: Parts
    first_seconds: float | None = None
    about: dict[str, Any] = field(default_factory=dict)
    crop: Crop | None = None
    decided: np.ndarray | None = None

    def records(self, shard_set: ShardSet) -> Records:
        """What is read for it."""
        return Records(shard_set, self.rows, self.first_seconds, self.crop)

    def decided_in(self, part: np.ndarray) -> np.ndarray | None:
        """`decided` of one of its parts."""
        return decided_at(self.decided, part)

    def positives_in(self, part: np.ndarray) -> np.ndarray:
        """Positive records int64 (C,) among those of a part that are decided."""
        truth = self.truth if self.decided is None else self.truth & self.decided
        counts: np.ndarray = truth[part].sum(axis=0)
        return counts


@dataclass(frozen=True)
class Records:
    """Which records are read: rows int64 (n,) of a set; only the first seconds of each are shown, None = all; crop: how
    each is cut into pieces, None = it is read whole."""

    shard_set: ShardSet
    rows: np.ndarray
    first_seconds: float | None = None
    crop: Crop | None = None

    def how(self, options: EmbedOptions) -> EmbedOptions:
        """The options with the seconds and pieces of these records."""
        window = None if self.crop is None else self.crop.seconds
        return replace(options, first_seconds=self.first_seconds, window=window)


def task_of_folds(
    shard_set: ShardSet, label_set: str, train: Sequence[int], validation: Sequence[int], test: Sequence[int]
) -> ProbeTask:
    """The records labelled in one label set of the shard set, by folds. Without test folds no record is in that part.

    Raises UsageError for a fold on two sides, DataError for an unknown label set or a part without records.
    """
    given = {"train": set(train), "val": set(validation), "test": set(test)}
    twice = sorted(
        fold
        for fold in given["train"] | given["val"] | given["test"]
        if sum(fold in part for part in given.values()) > 1
    )
    if twice:
        raise UsageError(
            f"fold {', '.join(map(str, twice))} is in two of train, validation and test", "give each fold to one part"
        )
    pieces = {
        part: shard_set.select(folds=sorted(folds), label_set=label_set).rows for part, folds in given.items() if folds
    }
    rows, parts = _together(shard_set, pieces)
    codes, matrix, _ = shard_set.labels(rows, label_set)
    about: dict[str, Any] = {"label_set": label_set, "folds": {part: sorted(folds) for part, folds in given.items()}}
    names, patients = [(code, code) for code in codes], shard_set.patients[rows]
    decided = decided_records(shard_set, rows, label_set, codes)
    task = ProbeTask(label_set, names, rows, matrix, patients, parts, about=about, decided=decided)
    return _told(task, shard_set)


def task_of_protocol(
    spec: str, shard_set: ShardSet, label_files: Path | None = None, parts_read: Sequence[str] = PARTS
) -> ProbeTask:
    """`PROTOCOL:TASK` in this shard set; a part that is not read is empty.

    Raises as `cardialign.pretrain.evaluation.protocols.open_task`.
    """
    opened = {part: open_task(spec, shard_set, split=part, label_files=label_files) for part in parts_read}
    rows, parts = _together(shard_set, {part: task.rows for part, task in opened.items()})
    first = opened["train"]
    if first.listed is not None:
        parts = replace(parts, train=np.searchsorted(rows, first.listed))
    truth, decided = joint_labels(rows, list(opened.values()))
    names = [(each.code, each.name) for each in first.prompts.classes]
    about = {"protocol": {part: task.protocol for part, task in opened.items()}}
    patients = shard_set.patients[rows]
    name = load_task(spec).spec
    task = ProbeTask(name, names, rows, truth, patients, parts, first.first_seconds, about, first.crop, decided)
    return _told(task, shard_set)


def joint_labels(rows: np.ndarray, tasks: Sequence[EvaluationTask]) -> tuple[np.ndarray, np.ndarray | None]:
    """Truth and decided bool (n, C) of rows (n,) ascending that hold those of the tasks, which have the same classes;
    decided None where no task leaves one open."""
    truth = np.zeros((len(rows), tasks[0].truth.shape[1]), dtype=bool)
    decided = np.ones_like(truth)
    for task in tasks:
        places = np.searchsorted(rows, task.rows)
        truth[places] = task.truth
        if task.decided is not None:
            decided[places] = task.decided
    return truth, None if decided.all() else decided


def _together(shard_set: ShardSet, pieces: dict[str, np.ndarray]) -> tuple[np.ndarray, Parts]:
    rows, counts = np.unique(np.concatenate([np.sort(each) for each in pieces.values()]), return_counts=True)
    if (counts > 1).any():
        twice = rows[counts > 1]
        raise DataError(
            f"{len(twice)} records are in two of train, validation and test (first: {shard_set.key(int(twice[0]))})",
            "give each record to one part",
        )
    none = np.empty(0, dtype=np.int64)
    return rows, Parts(*(np.searchsorted(rows, np.sort(pieces.get(part, none))) for part in PARTS))


def _told(task: ProbeTask, shard_set: ShardSet) -> ProbeTask:
    """Records that leave a class open, and patients of the training records among the others: a figure of theirs is no
    figure of new patients."""
    if task.decided is not None:
        counts = (~task.decided).sum(axis=0)
        left_open = {code: int(count) for (code, _), count in zip(task.names, counts, strict=True) if count}
        task.about["left_open"] = left_open
        log.info("probe task=%s left_open=%s", task.name, left_open)
    task.about["records"] = {
        "train": len(task.parts.train),
        "val": len(task.parts.validation),
        "test": len(task.parts.test),
    }
    for part, places in (("test", task.parts.test), ("validation", task.parts.validation)):
        shared = places[np.isin(task.patients[places], task.patients[task.parts.train])]
        task.about[f"{part}_patients_in_training"] = len(np.unique(task.patients[shared]))
        if shared.size:  # who they are is for the screen alone: a result names no record
            keys = ", ".join(shard_set.key(int(row)) for row in task.rows[shared][:NAMED])
            more = f" and {shared.size - NAMED} more" if shared.size > NAMED else ""
            log.warning("probe task=%s %s records of patients in training: %s%s", task.name, part, keys, more)
    return task
