"""Zero-shot evaluation: how well does the cosine between ECG and words for a finding rank the records that have it?

No label is used to fit anything: scores are raw cosines, or what the encoder scores by instead (`scorings`); no
softmax over classes, for findings combine; each class is ranked on its own. Records without a label in the prompt set's
label set are left out, never counted as negatives.
Legend: n records, C classes, e embedding_dim.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

from cardialign.data_shards.checks.label_coverage import label_coverage
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.given_numbers import fold_numbers, whole_number
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.features import EmbedOptions, Progress, embed_set, read_set, reader_of
from cardialign.pretrain.evaluation.intervals import LEVEL
from cardialign.pretrain.evaluation.overlap import find_overlap, refuse_overlap
from cardialign.pretrain.evaluation.prompts import PromptSet
from cardialign.pretrain.evaluation.result import ZeroShotComparison, ZeroShotResult
from cardialign.pretrain.evaluation.scored import ScoredRecords
from cardialign.pretrain.evaluation.scoring import ClassTable, score_classes, usable_classes
from cardialign.pretrain.evaluation.task import EvaluationTask, labelled_task
from cardialign.pretrain.evaluation.windows import mean_over_windows
from cardialign.pretrain.export.usable import UsableEncoder
from cardialign.pretrain.methods.parts.scoring import COSINE

log = logging.getLogger(__name__)


class ZeroShotOptions(TypedDict, total=False):
    """What to evaluate on, and how.

    prompts       name of a shipped prompt set, a YAML file, or a set that is at hand
    classes       only these codes of it
    folds, split  only these records; default: all
    task          instead of all these, what a protocol chose (`cardialign.pretrain.evaluation.protocols.open_task`)
    bootstrap     resamples, default 1000, drawn from `seed`, default 0; 0 or 1: figures without intervals
    batch_size    records that are embedded together, default 64; threads: that decode them, default 2
    progress      called with (done, total) in records
    allow_trained score records that the encoder was trained on, too; the result says so
    scoring       how a text is scored beside an ECG, one of the encoder's `scorings`; default: its own
    """

    prompts: str | Path | PromptSet | None
    folds: Sequence[int] | None
    classes: Sequence[str] | None
    split: str | None
    task: EvaluationTask | None
    bootstrap: int
    seed: int
    batch_size: int
    threads: int
    progress: Progress | None
    allow_trained: bool
    scoring: str | None


@dataclass(frozen=True)
class _Options:
    """`ZeroShotOptions` with their defaults."""

    prompts: str | Path | PromptSet | None = None
    folds: Sequence[int] | None = None
    classes: Sequence[str] | None = None
    split: str | None = None
    task: EvaluationTask | None = None
    bootstrap: int = 1000
    seed: int = 0
    batch_size: int = 64
    threads: int = 2
    progress: Progress | None = None
    allow_trained: bool = False
    scoring: str | None = None

    def __post_init__(self) -> None:
        fold_numbers(self.folds)
        for name, least in (("bootstrap", 0), ("seed", 0), ("batch_size", 1), ("threads", 1)):
            whole_number(name, getattr(self, name), least)
        if not isinstance(self.prompts, str | Path | PromptSet | None):
            raise UsageError(f"prompts is {self.prompts!r:.60}", "give the name of a prompt set, or a YAML file")
        if isinstance(self.classes, str):
            raise UsageError(f"classes is {self.classes!r:.60}", f"give a list of codes: [{self.classes!r:.60}]")


def _options(given: ZeroShotOptions) -> _Options:
    """Raises UsageError for an option that is not there, and for a value that none can be."""
    known = [each.name for each in fields(_Options)]
    for name in given:
        if name not in known:
            raise UsageError(f"an evaluation has no option {name!r}", f"its options are {', '.join(known)}")
    return _Options(**given)


def evaluate_zero_shot(
    encoder: UsableEncoder, shard_set: ShardSet, **options: Unpack[ZeroShotOptions]
) -> ZeroShotResult:
    """AUROC per class and macro with 95 % patient-cluster bootstrap intervals, over the labelled records selected.

    Raises UsageError for an unknown prompt set, class or label set (listing the known ones), UserError when the records
    do not fit the encoder's signal contract, it was trained without reports or on some of them, DataError when nothing
    is selected or a record is damaged.
    """
    return _evaluate([encoder], shard_set, _options(options))[0][0]


def compare_zero_shot(
    encoder: UsableEncoder, baseline: UsableEncoder, shard_set: ShardSet, **options: Unpack[ZeroShotOptions]
) -> ZeroShotComparison:
    """The same for two encoders in one pass over the records, with the paired difference.

    Both are scored on the same patient resamples. `encoder.untrained()` is the baseline that says what the recipe's
    architecture gives without any training.
    """
    (result, table), (other, beside) = _evaluate([encoder, baseline], shard_set, _options(options))
    macro, per_class = table.less(beside)
    codes = [entry.code for entry in result.classes]
    return ZeroShotComparison(result, other, macro, dict(zip(codes, per_class, strict=True)))


def _evaluate(
    encoders: Sequence[UsableEncoder], shard_set: ShardSet, options: _Options
) -> list[tuple[ZeroShotResult, ClassTable]]:
    started = time.monotonic()
    task = options.task or _own_task(shard_set, options)
    overlaps = [find_overlap(encoder, shard_set, task.rows) for encoder in encoders]
    if not options.allow_trained:
        for encoder, overlap in zip(encoders, overlaps, strict=True):
            refuse_overlap(overlap, encoder, shard_set)
    how = EmbedOptions(batch_size=options.batch_size, threads=options.threads)
    scores = class_scores(encoders, shard_set, task, how, options.progress, options.scoring)
    usable, reasons = usable_classes(task.truth, task.decided)
    if not usable.size:
        raise UserError(
            f"no class of {task.prompts.name} has both positives and negatives among {len(task.rows)} records",
            "evaluate on more records or other folds",
        )
    tables = score_classes(
        [values[:, usable] for values in scores],
        task.truth[:, usable],
        task.patients,
        [(task.prompts.classes[c].code, task.prompts.classes[c].name) for c in usable],
        resamples=options.bootstrap,
        seed=options.seed,
        decided=None if task.decided is None else task.decided[:, usable],
    )
    coverage = label_coverage(shard_set, task.rows, task.prompts.label_set)
    names = tuple((each.code, each.name) for each in task.prompts.classes)
    results = []
    for encoder, table, overlap, values in zip(encoders, tables, overlaps, scores, strict=True):
        result = _result(encoder, table, shard_set, task, task.why(reasons), options, started)
        kept = ScoredRecords(values[None], task.truth, task.patients, names, task.decided, task.rows)
        result = replace(result, trained_on=overlap.to_dict(), label_set=asdict(coverage), scored=kept)
        results.append((result, table))
    return results


def _own_task(shard_set: ShardSet, options: _Options) -> EvaluationTask:
    if options.prompts is None:
        raise UsageError("neither prompts nor a protocol's task is given", "name a prompt set or a protocol")
    return labelled_task(shard_set, options.prompts, options.folds, options.classes, options.split)


def check_told_apart(encoder: UsableEncoder, prompts: PromptSet, tell: bool = True) -> None:
    """Whether the text encoder reads of every class something of its own: what it cuts off or does not know is no word.

    tell: say how many prompts are longer than what the encoder reads.

    Raises UserError for two classes, or a class and what stands `against` it, of which the encoder reads the same: they
    would have one score, or none, and it would be given as two figures.
    """
    texts = list(dict.fromkeys(text for each in prompts.classes for text in (*each.prompts, *each.against)))
    read = encoder.tokens_of(texts)
    if read is None:
        return
    ids, lengths = read
    tokens = ids.shape[1]
    remedy = f"say what tells them apart within its first {tokens} tokens, in words that it knows (`prompts show`)"
    if tell:
        tell_cut(f"prompts={prompts.name}", lengths, tokens)
    key = {text: row.tobytes() for text, row in zip(texts, ids, strict=True)}
    first: dict[tuple[frozenset[bytes], frozenset[bytes]], str] = {}
    for each in prompts.classes:
        own, against = frozenset(key[text] for text in each.prompts), frozenset(key[text] for text in each.against)
        other = first.setdefault((own, against), each.code)
        if other != each.code:
            raise UserError(
                f"prompt set {prompts.name}: the text encoder reads the same for the classes {other:.60} and "
                f"{each.code:.60}",
                remedy,
            )
        if own & against:
            raise UserError(
                f"prompt set {prompts.name}: of class {each.code:.60} the text encoder reads a prompt and a text of "
                "`against` as the same",
                remedy,
            )


def tell_cut(what: str, lengths: np.ndarray, tokens: int) -> None:
    """Say how many of the texts, of so many tokens each (n,), are longer than what the text encoder reads."""
    cut = int((lengths >= tokens).sum())
    if cut:
        log.warning(
            "%s texts=%d of=%d remark=they fill all %d tokens that the text encoder reads, what they say behind them "
            "is not read", what, cut, len(lengths), tokens,
        )  # fmt: skip


def class_embeddings(encoder: UsableEncoder, prompts: PromptSet) -> np.ndarray:
    """float32 (C, e) unit rows: per class the mean of its prompts' unit embeddings, less that of those `against` it.

    This is the prompt ensemble of Radford et al. 2021, section 3.1.4. Raises UserError when the encoder was trained
    without reports.
    """
    texts = [part for c in prompts.classes for part in (c.prompts, c.against)]
    embedded = encoder.embed_text([text for part in texts for text in part])
    ends = np.cumsum([len(part) for part in texts])
    parts = np.split(embedded, ends[:-1])
    means = np.stack(
        [
            own.mean(axis=0) - other.mean(axis=0) if len(other) else own.mean(axis=0)
            for own, other in zip(parts[::2], parts[1::2], strict=True)
        ]
    )
    return means / np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)


@dataclass(frozen=True)
class ClassWords:
    """What stands for the classes: vectors float32 (P, e), unit rows.

    first: int (C,), the row with which each class begins, of whose vectors the nearest counts; None: one a class.
    """

    vectors: np.ndarray
    first: np.ndarray | None = None


def class_words(encoder: UsableEncoder, prompts: PromptSet, tell: bool = True) -> ClassWords:
    """The words of each class as its prompt set combines them.

    Raises UserError as `class_embeddings` and `check_told_apart`.
    """
    check_told_apart(encoder, prompts, tell)
    if prompts.combine == "mean":
        return ClassWords(class_embeddings(encoder, prompts))
    vectors = encoder.embed_text([text for each in prompts.classes for text in each.prompts])
    counts = [len(each.prompts) for each in prompts.classes]
    return ClassWords(vectors, np.cumsum([0, *counts[:-1]]))


def class_scores(
    encoders: Sequence[UsableEncoder],
    shard_set: ShardSet,
    task: EvaluationTask,
    options: EmbedOptions,
    progress: Progress | None = None,
    scoring: str | None = None,
) -> list[np.ndarray]:
    """Scores, float32 (n, C) per encoder, in the order of `task.rows`: cosines or logits, the larger the better.

    The task says how signals are shown, and of several prompts whether their mean or the best counts; scoring: one of
    the encoders' `scorings`, None: each by its own.
    Raises UsageError for a way that an encoder does not have, UserError where one has no text side or does not fit,
    DataError when a record is damaged.
    """
    window = None if task.crop is None else task.crop.seconds
    how = replace(
        options, first_seconds=task.first_seconds, window=window, normalisation=task.normalisation, with_features=False
    )
    ways = [scoring or encoder.scorings[0] for encoder in encoders]
    for encoder, way in zip(encoders, ways, strict=True):
        if way != COSINE and way not in encoder.scorings:
            raise encoder.unknown_scoring(way)
    plain = [k for k, way in enumerate(ways) if way == COSINE]
    texts = [class_words(encoders[k], task.prompts, tell=k == 0) for k in plain]
    out: dict[int, np.ndarray] = {}
    others = [k for k in range(len(encoders)) if k not in plain]
    for k in others:
        check_told_apart(encoders[k], task.prompts, tell=k == 0)
    if others:
        distinct = list(dict.fromkeys(text for c in task.prompts.classes for text in (*c.prompts, *c.against)))
        readers = [
            reader_of(partial(encoders[k].text_reader, texts=distinct, scoring=ways[k]), shard_set) for k in others
        ]
        read = read_set(readers, shard_set, task.rows, how, progress)
        out |= {k: combined(each.embedding, task.prompts, distinct) for k, each in zip(others, read, strict=True)}
    if plain:
        embedded = embed_set([encoders[k] for k in plain], shard_set, task.rows, how, progress)
        for k, each, words in zip(plain, embedded, texts, strict=True):
            out[k] = cosines(each.embedding, words, how.batch_size)
    return [out[k] for k in range(len(encoders))]


def combined(scores: np.ndarray, prompts: PromptSet, texts: Sequence[str]) -> np.ndarray:
    """Scores of texts (n, P), or (n, W, P) of records in pieces, -> of classes, float32 (n, C).

    The mean of a class's prompts, less that of those against it, or their largest, as its prompt set says. Of pieces
    the mean.
    """
    if scores.ndim == 3:
        pieces = [combined(scores[:, w], prompts, texts) for w in range(scores.shape[1])]
        return mean_over_windows(np.stack(pieces, axis=1))
    at = {text: k for k, text in enumerate(texts)}
    out = np.empty((len(scores), len(prompts.classes)), dtype=np.float32)
    for column, each in enumerate(prompts.classes):
        own = scores[:, [at[text] for text in each.prompts]]
        out[:, column] = own.max(axis=1) if prompts.combine == "max" else own.mean(axis=1)
        if each.against and prompts.combine == "mean":
            out[:, column] -= scores[:, [at[text] for text in each.against]].mean(axis=1)
    return out


def cosines(ecg: np.ndarray, words: ClassWords, batch_size: int) -> np.ndarray:
    """(n, e) unit rows -> float32 (n, C), a batch at a time: one product of all rows could round its last bits
    otherwise.

    Of records in pieces, (n, W, e), the mean of the pieces' scores.
    """
    if ecg.ndim == 3:
        pieces = [cosines(ecg[:, w], words, batch_size) for w in range(ecg.shape[1])]
        return mean_over_windows(np.stack(pieces, axis=1))
    out = np.empty((len(ecg), len(words.vectors)), dtype=np.float32)
    for start in range(0, len(ecg), batch_size):
        rows = slice(start, start + batch_size)
        out[rows] = ecg[rows] @ words.vectors.T
    return out if words.first is None else np.maximum.reduceat(out, words.first, axis=1)


def _result(
    encoder: UsableEncoder,
    table: ClassTable,
    shard_set: ShardSet,
    task: EvaluationTask,
    reasons: dict[int, str],
    options: _Options,
    started: float,
) -> ZeroShotResult:
    prompts, way = task.prompts, options.scoring or encoder.scorings[0]
    result = ZeroShotResult(
        n=len(task.rows),
        patients=len(np.unique(task.patients)),
        classes=table.classes,
        macro=table.macro.value,
        low=table.macro.low,
        high=table.macro.high,
        macro_frequent=table.frequent,
        excluded=[
            {"code": prompts.classes[c].code, "name": prompts.classes[c].name, "reason": why}
            for c, why in reasons.items()
        ],
        unprompted=list(task.unprompted),
        unprompted_records=task.unprompted,
        prompts={
            "name": prompts.name,
            "version": prompts.version,
            "label_set": prompts.label_set,
            "combine": prompts.combine,
            "digest": prompts.digest,
            **({} if way == COSINE else {"scoring": way}),
        },
        bootstrap={
            "resamples": options.bootstrap,
            "seed": options.seed,
            "unit": "patient",
            "weights": "exponential: every resample holds every class of the macro",
            "level": LEVEL,
        },
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
        prompts.name, result.n, len(result.classes), result.macro, encoder.digest[:24],
    )  # fmt: skip
    return result
