"""One checkpoint of a run, judged on validation records: what a worker beside the training does again and again.

The checkpoint is exported as it will be handed over, so that its figures are those of the encoder that users get.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.config import EvaluationConfig, RunConfig
from cardialign.pretrain.config.evaluation import PROBE, ZERO_SHOT
from cardialign.pretrain.evaluation.overlap import find_overlap, refuse_overlap
from cardialign.pretrain.evaluation.probing.linear_probe import Parts
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask, task_of_folds
from cardialign.pretrain.evaluation.scoring import decided_at
from cardialign.pretrain.evaluation.selection.select import Validation, figures_of
from cardialign.pretrain.evaluation.task import EvaluationTask, labelled_task
from cardialign.pretrain.evaluation.zero_shot import evaluate_zero_shot
from cardialign.pretrain.export.usable import UsableEncoder
from cardialign.pretrain.training.data import open_data

RESAMPLES = 200
"""Of the intervals of a figure that is taken at every checkpoint."""


@dataclass(frozen=True)
class Asked:
    """What every checkpoint is asked: the validation records, tasks of zero-shot by prompt set, of probes by label
    set."""

    on: Validation
    zero_shot: dict[str, EvaluationTask]
    probes: dict[str, ProbeTask]


@dataclass(frozen=True)
class Looked:
    """figures: criterion -> value, higher is better; intervals: of those that have one, its ends; reasons: criterion ->
    why it cannot be had; records that were looked at, and the seconds it took."""

    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    reasons: dict[str, str]
    records: int
    seconds: float


def asked_of(config: RunConfig) -> Asked:
    """What `config.evaluation` asks for, opened.

    Raises UsageError for records that are trained on, for an unknown prompt or label set, and for a probe without
    folds to learn from; DataError where no record is selected.
    """
    wanted = config.evaluation
    assert wanted is not None
    shard_set = ShardSet.open(_shards_of(config, wanted))
    rows = shard_set.select(folds=wanted.folds, split=wanted.split).rows
    _refuse_what_trains(config, shard_set, rows)
    kept = _spaced(rows, wanted.most_records)
    where = f"split {wanted.split}" if wanted.split else f"folds {','.join(map(str, wanted.folds or ()))}"
    return Asked(
        Validation(shard_set, kept, f"{where}: {len(kept)} of {len(rows)} records"),
        {name: _thinned_words(_words(shard_set, wanted, name), wanted.most_records) for name in wanted.zero_shot},
        {name: _probe_of(config, wanted, shard_set, name) for name in wanted.probe},
    )


def figures_of_checkpoint(encoder: UsableEncoder, asked: Asked) -> Looked:
    """The figures of an encoder by everything that is asked.

    Raises UserError when the encoder was trained on the validation records, or does not fit them.
    """
    started = time.monotonic()
    refuse_overlap(find_overlap(encoder, asked.on.shard_set, asked.on.rows), encoder, asked.on.shard_set)
    found = figures_of(encoder, asked.on)
    figures = {name: value for name, value in found.values.items() if value is not None}
    reasons, intervals = dict(found.reasons), {}
    for name, task in asked.zero_shot.items():
        result = evaluate_zero_shot(encoder, asked.on.shard_set, task=task, bootstrap=RESAMPLES)
        figures[f"{ZERO_SHOT}{name}"] = result.macro
        intervals[f"{ZERO_SHOT}{name}"] = (result.low, result.high)
    for name, probed in asked.probes.items():
        on = Validation(asked.on.shard_set, probed.rows[probed.parts.validation], asked.on.described, probed)
        judged = figures_of(encoder, on, ("probe",))
        value = judged.values.get("probe")
        if value is None:
            reasons[f"{PROBE}{name}"] = judged.reasons["probe"]
        else:
            figures[f"{PROBE}{name}"] = value
    return Looked(figures, intervals, reasons, len(asked.on.rows), time.monotonic() - started)


def _shards_of(config: RunConfig, wanted: EvaluationConfig) -> Path:
    if wanted.shards is not None:
        return wanted.shards
    if config.data.shards is None:
        raise UsageError(
            "evaluation: a run of several shard sets does not say which of them holds the validation records",
            "name it: evaluation.shards",
        )
    return config.data.shards


def _refuse_what_trains(config: RunConfig, shard_set: ShardSet, rows: np.ndarray) -> None:
    opened, selection, _ = open_data(config)
    parts = [(opened, 0)] if isinstance(opened, ShardSet) else zip(opened.sets, opened.offsets, strict=True)
    # of other sets each exported checkpoint says what it was trained on, and is refused then
    same = [(each, first) for each, first in parts if each.fingerprint == shard_set.fingerprint]
    trained = np.concatenate([np.empty(0, dtype=np.int64), *(_rows_in(selection.rows, *each) for each in same)])
    both = np.intersect1d(rows, trained)
    known = np.isin(shard_set.patients[rows], np.unique(shard_set.patients[trained]))
    if both.size or known.any():
        raise UsageError(
            f"evaluation: {both.size} of the {len(rows)} validation records are trained on, and {int(known.sum())} are "
            "of patients who are",
            "leave their folds out of data.folds (--folds), or name other records in evaluation.folds",
        )


def _rows_in(rows: np.ndarray, part: ShardSet, first: int) -> np.ndarray:
    """Of rows of joined sets those of one set, as it numbers them."""
    return rows[(rows >= first) & (rows < first + len(part))] - first


def _words(shard_set: ShardSet, wanted: EvaluationConfig, name: str) -> EvaluationTask:
    return labelled_task(shard_set, name, folds=wanted.folds, split=wanted.split)


def _probe_of(config: RunConfig, wanted: EvaluationConfig, shard_set: ShardSet, label_set: str) -> ProbeTask:
    learn = wanted.probe_folds or (config.data.folds if wanted.shards is None else None)
    if not learn:
        raise UsageError(
            f"evaluation: nothing says from which folds the probe of {label_set} learns", "give evaluation.probe_folds"
        )
    task = task_of_folds(shard_set, label_set, learn, wanted.folds or (), ())
    return _thinned_probe(task, wanted.most_records)


def _spaced(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many, evenly spaced, the same at every call."""
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).round().astype(np.int64)]


def _thinned_words(task: EvaluationTask, most: int) -> EvaluationTask:
    kept = _spaced(np.arange(len(task.rows)), most)
    decided = decided_at(task.decided, kept)
    return replace(task, rows=task.rows[kept], truth=task.truth[kept], patients=task.patients[kept], decided=decided)


def _thinned_probe(task: ProbeTask, most: int) -> ProbeTask:
    """Fewer records to learn from and to judge by: those that are in no part need not be read."""
    train, validation = (np.sort(_spaced(part, most)) for part in (task.parts.train, task.parts.validation))
    kept = np.union1d(train, validation)
    parts = Parts(np.searchsorted(kept, train), np.searchsorted(kept, validation), np.empty(0, dtype=np.int64))
    return replace(
        task, rows=task.rows[kept], truth=task.truth[kept], patients=task.patients[kept], parts=parts,
        decided=task.decided_in(kept),
    )  # fmt: skip
