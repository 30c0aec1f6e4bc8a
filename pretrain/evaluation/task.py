"""What an evaluation scores: rows of a shard set, the truth per class, and the words for each class.

Legend: n records, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.checks.label_coverage import open_classes
from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.plugins import did_you_mean
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.shard_set.splits import SplitRule
from cardialign.pretrain.evaluation.prompts import PromptSet, load_prompts
from cardialign.pretrain.evaluation.windows import Crop


@dataclass(frozen=True)
class EvaluationTask:
    """rows (n,), truth bool (n, C) in the order of `prompts.classes`, patients (n,).

    unprompted     the label codes nobody has words for, and how many of the records have each
    first_seconds  only so much of each signal is shown to the encoder, the rest is masked; None = all of it
    decided        bool (n, C), False where a record's codes leave the class open, so that it is scored for the others
                   only; None = every record is a positive or a negative of every class
    crop           how each record is cut into pieces that are scored alone; None = it is read whole
    normalisation  what is done to the signal before the encoder sees it; "none" = its own signal contract holds
    protocol       where all this comes from when a published protocol chose it
                   (`cardialign.pretrain.evaluation.protocols`), None otherwise
    listed         the rows in the order of the published label file, where there is one: published subsets count in it
    absent         codes of the prompts that no record of the shard set has, whatever its fold: mistyped, or not there
    """

    prompts: PromptSet
    rows: np.ndarray
    truth: np.ndarray
    patients: np.ndarray
    unprompted: dict[str, int]
    folds: tuple[int, ...] | None = None
    split: SplitRule | None = None
    first_seconds: float | None = None
    protocol: dict[str, Any] | None = None
    decided: np.ndarray | None = None
    crop: Crop | None = None
    normalisation: str = "none"
    listed: np.ndarray | None = None
    absent: tuple[str, ...] = ()

    def why(self, reasons: dict[int, str]) -> dict[int, str]:
        """Why classes cannot be scored, by their places: `scoring.usable_classes` says it of the records, and of a code
        that the whole label set lacks there is more to say."""
        lacking = f"no record of the shard set has such a code of {self.prompts.label_set}"
        near = {code: did_you_mean(code, list(self.unprompted)) for code in self.absent}
        codes = self.prompts.codes
        return {c: lacking + near[codes[c]] if codes[c] in near else reason for c, reason in reasons.items()}


def labelled_task(
    shard_set: ShardSet,
    prompts: str | Path | PromptSet,
    folds: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    split: SplitRule | str | None = None,
    unlabelled: str = "left-out",
) -> EvaluationTask:
    """The records that are labelled in the label set of `prompts`, of these folds and this split.

    unlabelled: records without a label of the set are "left-out", or count as "negative" for every class.
    The labels are the shard set's own. Raises UsageError for an unknown prompt set, class or label set (listing the
    known ones), DataError when nothing is selected.
    """
    words = prompts if isinstance(prompts, PromptSet) else load_prompts(prompts)
    words = words if classes is None else words.only(classes)
    if words.label_set not in shard_set.label_sets:
        raise UsageError(
            f"prompt set {words.name} answers to label set {words.label_set!r}, which {shard_set.path} does not have",
            f"label sets there: {', '.join(shard_set.label_sets)}; words for one of your own are a YAML file with its "
            "name as label_set, like those that `cardialign prompts show NAME` tells of: --prompts FILE.yaml"
            if shard_set.label_sets
            else "label sets there: none (build the shards with labels)",
        )
    rule = SplitRule(split) if isinstance(split, str) else split
    wanted = words.label_set if unlabelled == "left-out" else None
    rows = shard_set.select(folds=folds, label_set=wanted, split=rule).rows
    known, matrix, _ = shard_set.labels(rows, words.label_set)
    if not set(known) & set(words.codes):
        raise UsageError(
            f"no code of prompt set {words.name} occurs in label set {words.label_set!r} of {shard_set.path}",
            f"codes there: {', '.join(known)}",
        )
    column = {code: k for k, code in enumerate(known)}
    none = np.zeros(len(rows), dtype=bool)
    truth = np.stack([matrix[:, column[c]] if c in column else none for c in words.codes], axis=1)
    chosen = None if folds is None else tuple(int(f) for f in folds)
    counts = matrix.sum(axis=0)
    unprompted = {} if classes else {c: int(counts[column[c]]) for c in known if c not in words.codes}
    decided = decided_records(shard_set, rows, words.label_set, words.codes)
    absent = tuple(code for code in words.codes if code not in column)
    patients = shard_set.patients[rows]
    return EvaluationTask(words, rows, truth, patients, unprompted, chosen, rule, decided=decided, absent=absent)


def decided_records(shard_set: ShardSet, rows: np.ndarray, label_set: str, codes: Sequence[str]) -> np.ndarray | None:
    """bool (n, C) over these classes of a label set: False where a record's own codes leave the class open.

    None where nothing is open: every record is a positive or a negative of every class.
    """
    left_open = open_classes(shard_set, rows, label_set)
    if not set(left_open) & set(codes):
        return None
    none = np.zeros(len(rows), dtype=bool)
    return np.stack([~left_open.get(code, none) for code in codes], axis=1)
