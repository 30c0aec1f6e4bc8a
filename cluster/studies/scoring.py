"""The scores of one encoder, or of one floor, on the fold that its cell keeps out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from cardialign.cluster.studies import missing
from cardialign.cluster.studies.design import Cell
from cardialign.cluster.studies.measures import FRESH, PROBE, ZERO_SHOT, share_of
from cardialign.cluster.studies.outcome import Outcome, Setting

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.config import RunConfig
    from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
    from cardialign.pretrain.evaluation.task import EvaluationTask
    from cardialign.pretrain.export.loaded import LoadedEncoder

STYLE = "random"
"""How a share of the labels is drawn (`probing.subsets`)."""


def scoring_device() -> str:
    """Where records are embedded: as the training, on a GPU where PyTorch sees one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def scored(cell: Cell, encoder: LoadedEncoder, config: RunConfig, setting: Setting, shard_set: ShardSet) -> Outcome:
    """All measures of an encoder on the fold kept out, and RankMe of the features of all records.

    config: what it was made from, for its fresh weights.
    """
    task = task_of(setting, shard_set, cell.fold)
    features, embedding = _read(encoder, task, shard_set)
    found = measured(cell, task, features, (encoder, embedding), setting, shard_set)
    found.facts["effective_rank"] = rank_of(features)
    if FRESH in setting.measures:
        _add_fresh(found, task, config, shard_set)
    if setting.missingness:
        missing.add_missing(found, encoder, shard_set, words_of(setting, shard_set, cell.fold))
    return found


def rank_of(features: np.ndarray) -> float | None:
    """RankMe of features (n, F); None where they are all zero, or not finite, and use no direction."""
    from cardialign.pretrain.evaluation.selection.effective_rank import effective_rank

    try:
        return round(effective_rank(features), 2)
    except ValueError:
        return None


def _read(encoder: LoadedEncoder, task: ProbeTask, shard_set: ShardSet) -> tuple[np.ndarray, np.ndarray]:
    from cardialign.pretrain.evaluation.features import EmbedOptions, embed_set

    embedded = embed_set([encoder], shard_set, task.rows, EmbedOptions(with_features=True))[0]
    assert embedded.features is not None
    return np.asarray(embedded.features), np.asarray(embedded.embedding)


def _add_fresh(found: Outcome, task: ProbeTask, config: RunConfig, shard_set: ShardSet) -> None:
    """The probe of the same encoder with fresh weights of the cell's seed, of the same records."""
    from cardialign.pretrain.evaluation.probing.linear_probe import probe
    from cardialign.pretrain.export.loaded import untrained_encoder

    fresh = untrained_encoder(config, shard_set.spec, found.cell.seed, scoring_device(), with_reports=False)
    fitted = probe(_read(fresh, task, shard_set)[0], task.truth, task.parts, decided=task.decided)
    found.scores[FRESH] = fitted.scores
    of_probe: tuple[dict[str, Any], ...] = (found.truth, found.patients, found.codes, found.decided)
    for part in of_probe:
        if PROBE in part:
            part[FRESH] = part[PROBE]


def scored_by_labels(cell: Cell, setting: Setting, shard_set: ShardSet, made_from: str) -> Outcome:
    """A network that labels alone train, from weights of the cell's seed: what it makes of the fold kept out.

    It is shown as many records as the study says, or fewer where the validation records end it.
    """
    from cardialign.pretrain.benchmarks.counts import count_encoder
    from cardialign.pretrain.evaluation.probing.tuned import encoder_section, from_scratch

    preset = cell.variant.supervised
    assert preset is not None
    began, started, task = time.monotonic(), time.process_time(), task_of(setting, shard_set, cell.fold)
    changes = [each.removeprefix("encoder.") for each in cell.variant.overrides]
    start = encoder_section(preset, changes)
    fit, scores = from_scratch(preset, shard_set, task, setting.records, changes), {}
    for measure in setting.measures_of(cell):
        share = share_of(measure)
        assert share is not None
        scores[measure] = fit(task.truth, task.parts, share, STYLE, cell.seed, task.decided).scores
    parameters, flop = count_encoder(start, shard_set.spec)
    facts = {
        "variant": cell.variant.name,
        "fold": cell.fold,
        "seed": cell.seed,
        "made_from": made_from,
        "parameters": parameters,
        "trained_parameters": parameters,
        "gflop": round(flop / 1e9, 4),
        "cpu_seconds": round(time.process_time() - started, 1),
        "seconds": round(time.monotonic() - began, 1),
        "device": scoring_device(),
    }
    return _outcome(cell, task, scores, facts)


def _outcome(cell: Cell, task: ProbeTask, scores: dict[str, np.ndarray], facts: dict[str, Any]) -> Outcome:
    """Of measures that are all scored on the task's test records."""
    test = task.parts.test
    decided, patients = task.decided_in(test), task.patients[test].astype(str)
    return Outcome(
        cell,
        facts,
        scores,
        dict.fromkeys(scores, task.truth[test]),
        dict.fromkeys(scores, patients),
        {measure: [code for code, _ in task.names] for measure in scores},
        {} if decided is None else dict.fromkeys(scores, decided),
    )


def task_of(setting: Setting, shard_set: ShardSet, fold: int) -> ProbeTask:
    """What the probe learns from, chooses by and is scored on where that fold is kept out."""
    from cardialign.pretrain.evaluation.probing.tasks import task_of_folds

    validation = setting.validation(fold)
    learn = [each for each in setting.training(fold) if each != validation]
    return task_of_folds(shard_set, setting.label_set, learn, [validation], [fold])


def words_of(setting: Setting, shard_set: ShardSet, fold: int) -> EvaluationTask:
    """What zero-shot is scored on where that fold is kept out."""
    from cardialign.pretrain.evaluation.task import labelled_task

    return labelled_task(shard_set, setting.prompts, folds=[fold])


def measured(
    cell: Cell,
    task: ProbeTask,
    features: np.ndarray,
    beside: tuple[LoadedEncoder, np.ndarray] | None,
    setting: Setting,
    shard_set: ShardSet,
) -> Outcome:
    """features (n, F) of the task's records; beside: the encoder that has words, and its embeddings (n, e) of them."""
    from cardialign.pretrain.evaluation.probing.linear_probe import probe

    scores = {}
    for measure in setting.measures:
        share = share_of(measure)
        if share is not None and measure != FRESH:
            scores[measure] = probe(
                features, task.truth, task.parts, share, STYLE, cell.seed, decided=task.decided
            ).scores
    found = _outcome(cell, task, scores, {})
    if beside is not None and ZERO_SHOT in setting.measures:
        _add_words(found, task, *beside, setting, shard_set)
    return found


def _add_words(
    found: Outcome,
    task: ProbeTask,
    encoder: LoadedEncoder,
    embedding: np.ndarray,
    setting: Setting,
    shard_set: ShardSet,
) -> None:
    """The scores by words."""
    from cardialign.pretrain.evaluation.features import EmbedOptions
    from cardialign.pretrain.evaluation.zero_shot import class_scores, class_words, cosines
    from cardialign.pretrain.methods.parts.scoring import COSINE

    words = words_of(setting, shard_set, found.cell.fold)
    if encoder.scorings[0] == COSINE:
        own = embedding[np.searchsorted(task.rows, words.rows)]
        found.scores[ZERO_SHOT] = cosines(own, class_words(encoder, words.prompts), len(own))
    else:
        found.scores[ZERO_SHOT] = class_scores([encoder], shard_set, words, EmbedOptions())[0]
    found.truth[ZERO_SHOT] = words.truth
    found.patients[ZERO_SHOT] = np.asarray(words.patients).astype(str)
    found.codes[ZERO_SHOT] = list(words.prompts.codes)
    if words.decided is not None:
        found.decided[ZERO_SHOT] = words.decided
