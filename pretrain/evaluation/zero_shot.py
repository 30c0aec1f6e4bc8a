"""Zero-shot evaluation: how well does the cosine between an ECG and the words for a finding rank the records that have it?

No label is used to fit anything: scores are raw cosines (no softmax: findings combine), each class is ranked on its own. Records without a label in the
prompt set's label set are left out, never counted as negatives. Legend: n records, C classes, e embedding_dim.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import iterate_rows
from cardialign.pretrain.evaluation.prompts import PromptSet
from cardialign.pretrain.evaluation.result import ClassResult, MacroResult, ZeroShotComparison, ZeroShotResult
from cardialign.pretrain.evaluation.scoring import Estimate, bootstrap_auroc, class_auroc, row_means, usable_classes
from cardialign.pretrain.evaluation.task import EvaluationTask, labelled_task
from cardialign.pretrain.export.loaded import LoadedEncoder

log = logging.getLogger(__name__)

MIN_PATIENTS = 5
"""Fewer patients with (or without) a finding give no interval: resampling one patient only ever shows that patient."""
FREQUENT = 10
"""Classes with fewer positives swing the macro mean; it is reported with and without them."""

Progress = Callable[[int, int], None]


class ZeroShotOptions(TypedDict, total=False):
    """What to evaluate on, and how; the defaults stand in `_evaluate`.

    prompts: name of a shipped prompt set or a YAML file; classes: only these codes of it; folds, split: only these records (all by default); task:
    instead of all these, what a protocol chose (`cardialign.pretrain.evaluation.protocols.open_task`); bootstrap: resamples; progress(done, total) in records.
    """

    prompts: str | Path | None
    folds: Sequence[int] | None
    classes: Sequence[str] | None
    split: str | None
    task: EvaluationTask | None
    bootstrap: int
    seed: int
    batch_size: int
    threads: int
    progress: Progress | None


def evaluate_zero_shot(
    encoder: LoadedEncoder, shard_set: ShardSet, **options: Unpack[ZeroShotOptions]
) -> ZeroShotResult:
    """AUROC per class and macro with 95 % patient-cluster bootstrap intervals, over the labelled records that the options select.

    Raises UsageError for an unknown prompt set, class or label set (listing the known ones), UserError when the records do not fit the encoder's
    signal contract, DataError when nothing is selected or a record is damaged.
    """
    return _evaluate([encoder], shard_set, **options)[0][0]


def compare_zero_shot(
    encoder: LoadedEncoder, baseline: LoadedEncoder, shard_set: ShardSet, **options: Unpack[ZeroShotOptions]
) -> ZeroShotComparison:
    """The same for two encoders in one pass over the records, with the paired difference: both are scored on the same patient resamples.

    `encoder.untrained()` is the baseline that says what the recipe's architecture gives without any training.
    """
    (result, table), (other, other_table) = _evaluate([encoder, baseline], shard_set, **options)
    per_class = {
        a.code: Estimate.of(a.auroc - b.auroc, table[:, k] - other_table[:, k])
        for k, (a, b) in enumerate(zip(result.classes, other.classes, strict=True))
    }
    macro = Estimate.of(result.macro - other.macro, row_means(table) - row_means(other_table))
    return ZeroShotComparison(result, other, macro, per_class)


def _evaluate(
    encoders: Sequence[LoadedEncoder],
    shard_set: ShardSet,
    *,
    prompts: str | Path | None = None,
    folds: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    split: str | None = None,
    task: EvaluationTask | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 64,
    threads: int = 2,
    progress: Progress | None = None,
) -> list[tuple[ZeroShotResult, np.ndarray]]:
    """Result and bootstrap table (resamples, classes) per encoder."""
    started = time.monotonic()
    task = task or _own_task(shard_set, prompts, folds, classes, split)
    scores = _scores(encoders, shard_set, task, batch_size, threads, progress)
    return _results(encoders, scores, shard_set, task, bootstrap, seed, started)


def class_embeddings(encoder: LoadedEncoder, prompts: PromptSet) -> np.ndarray:
    """float32 (C, e) unit rows: per class the mean of its prompts' unit embeddings (prompt ensemble, Radford et al. 2021, section 3.1.4)."""
    embedded = encoder.embed_text([prompt for c in prompts.classes for prompt in c.prompts])
    ends = np.cumsum([len(c.prompts) for c in prompts.classes])
    means = np.stack([part.mean(axis=0) for part in np.split(embedded, ends[:-1])])
    return means / np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)


def _own_task(
    shard_set: ShardSet,
    prompts: str | Path | None,
    folds: Sequence[int] | None,
    classes: Sequence[str] | None,
    split: str | None,
) -> EvaluationTask:
    if prompts is None:
        raise UsageError("neither prompts nor a protocol's task is given", "name a prompt set or a protocol")
    return labelled_task(shard_set, prompts, folds, classes, split)


def _scores(
    encoders: Sequence[LoadedEncoder],
    shard_set: ShardSet,
    task: EvaluationTask,
    batch_size: int,
    threads: int,
    progress: Progress | None,
) -> list[np.ndarray]:
    """Cosines, float32 (n, C) per encoder, in the order of `task.rows`; each record is read once."""
    for encoder in encoders:
        _check_contract(encoder, shard_set)
    texts = [class_embeddings(encoder, task.prompts) for encoder in encoders]
    out = [np.empty(task.truth.shape, dtype=np.float32) for _ in encoders]
    samples = shard_set.spec.samples
    shown = (
        samples
        if task.first_seconds is None
        else min(samples, round(task.first_seconds * shard_set.spec.sampling_rate))
    )
    done = 0
    for batch in iterate_rows(shard_set, task.rows, batch_size, threads):
        batch.signal[..., shown:] = 0.0
        valid = np.minimum(batch.valid_samples, shown)
        for encoder, text, scores in zip(encoders, texts, out, strict=True):
            ecg = encoder.encode(batch.signal, batch.lead_mask, valid).embedding.float().cpu().numpy()
            scores[done : done + len(ecg)] = ecg @ text.T
        done += len(batch.rows)
        if progress is not None:
            progress(done, len(task.rows))
    assert done == len(task.rows), f"{done} of {len(task.rows)} records were scored"
    return out


def _check_contract(encoder: LoadedEncoder, shard_set: ShardSet) -> None:
    has, wants = shard_set.spec, encoder.contract
    if has.sampling_rate != wants.sampling_rate or has.samples != wants.samples:
        raise UserError(
            f"{shard_set.path} holds {has.seconds:g} s at {has.sampling_rate:g} Hz, the encoder was trained on {wants.seconds:g} s at {wants.sampling_rate:g} Hz",
            f"build shards with sampling rate {wants.sampling_rate:g} and {wants.seconds:g} seconds from the same source",
        )


def _results(
    encoders: Sequence[LoadedEncoder],
    scores: Sequence[np.ndarray],
    shard_set: ShardSet,
    task: EvaluationTask,
    bootstrap: int,
    seed: int,
    started: float,
) -> list[tuple[ZeroShotResult, np.ndarray]]:
    usable, reasons = usable_classes(task.truth)
    if not usable.size:
        raise UserError(
            f"no class of {task.prompts.name} has both positives and negatives among {len(task.rows)} records",
            "evaluate on more records or other folds",
        )
    truth = task.truth[:, usable]
    tables = bootstrap_auroc([s[:, usable] for s in scores], truth, task.patients, resamples=bootstrap, seed=seed)
    entries = [task.prompts.classes[c] for c in usable]
    positives = truth.sum(axis=0)
    having = np.array([len(np.unique(task.patients[column])) for column in truth.T])
    lacking = np.array([len(np.unique(task.patients[~column])) for column in truth.T])
    out = []
    for encoder, values, table in zip(encoders, scores, tables, strict=True):
        point = class_auroc(values[:, usable], truth)
        shown = np.where(np.minimum(having, lacking) >= MIN_PATIENTS, table, np.nan)
        estimates = [Estimate.of(point[k], shown[:, k]) for k in range(len(usable))]
        macro = Estimate.of(point.mean(), row_means(table))
        result = ZeroShotResult(
            n=len(task.rows),
            patients=len(np.unique(task.patients)),
            classes=[
                ClassResult(c.code, c.name, int(p), int(h), e.value, e.low, e.high)
                for c, p, h, e in zip(entries, positives, having, estimates, strict=True)
            ],
            macro=macro.value,
            low=macro.low,
            high=macro.high,
            macro_frequent=_frequent(point, table, positives),
            excluded=[
                {"code": task.prompts.classes[c].code, "name": task.prompts.classes[c].name, "reason": why}
                for c, why in reasons.items()
            ],
            unprompted=task.unprompted,
            prompts={
                "name": task.prompts.name,
                "version": task.prompts.version,
                "label_set": task.prompts.label_set,
                "digest": task.prompts.digest,
            },
            bootstrap={"resamples": bootstrap, "seed": seed, "unit": "patient", "level": 0.95},
            folds=None if task.folds is None else list(task.folds),
            encoder=encoder.digest,
            shards=shard_set.fingerprint,
            split=None if task.split is None else asdict(task.split),
            protocol=task.protocol,
            masked_leads=int((~shard_set.lead_masks(task.rows)).any(axis=1).sum()),
            seconds=time.monotonic() - started,
        )
        log.info(
            "zero_shot prompts=%s n=%d classes=%d macro=%.4f encoder=%s",
            task.prompts.name,
            result.n,
            len(usable),
            result.macro,
            encoder.digest[:24],
        )
        out.append((result, table))
    return out


def _frequent(point: np.ndarray, table: np.ndarray, positives: np.ndarray) -> MacroResult:
    chosen = positives >= FREQUENT
    if not chosen.any():
        return MacroResult(math.nan, math.nan, math.nan, 0, FREQUENT)
    estimate = Estimate.of(point[chosen].mean(), row_means(table[:, chosen]))
    return MacroResult(estimate.value, estimate.low, estimate.high, int(chosen.sum()), FREQUENT)
