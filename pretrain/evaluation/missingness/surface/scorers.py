"""What is ranked, and how an encoder ranks it: by its words for the classes, or by a linear map of its features.

The linear map is learnt from whole records of the training folds, as in `evaluate linear-probe`, and stays as it is.
Legend: B batch, n records, C classes, T samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.features import EmbedOptions, Progress, embed_set, reader_of
from cardialign.pretrain.evaluation.probing.linear_probe import fitted
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
from cardialign.pretrain.evaluation.scoring import decided_at, usable_classes
from cardialign.pretrain.evaluation.task import EvaluationTask
from cardialign.pretrain.evaluation.zero_shot import check_told_apart, class_words, combined, cosines
from cardialign.pretrain.export.ages import aged
from cardialign.pretrain.export.usable import UsableEncoder
from cardialign.pretrain.methods.parts.scoring import COSINE

Scorer = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""ages float32 (B,) in years, NaN = not known, signal float32 (B, 12, T) in mV, lead_mask bool (B, 12), valid_samples
int (B,) -> scores (B, C)."""


@dataclass(frozen=True)
class Ranked:
    """What is ranked: rows int64 (n,) of a shard set, truth bool (n, C), patients (n,); codes of the classes.

    name: of the prompts, label set or protocol. decided as `EvaluationTask`; first_seconds: only so much is shown.
    """

    name: str
    codes: tuple[str, ...]
    rows: np.ndarray
    truth: np.ndarray
    patients: np.ndarray
    decided: np.ndarray | None = None
    first_seconds: float | None = None

    @classmethod
    def by_words(cls, task: EvaluationTask) -> Ranked:
        """Raises UsageError for a protocol that cuts records into pieces, or scales them itself."""
        if task.crop is not None or task.normalisation != "none":
            raise UsageError(
                f"{task.prompts.name}: the protocol cuts or scales its records itself",
                "choose another protocol, or --prompts",
            )
        name = task.prompts.name if task.protocol is None else f"{task.protocol['protocol']}:{task.protocol['task']}"
        codes = tuple(task.prompts.codes)
        return cls(name, codes, task.rows, task.truth, task.patients, task.decided, task.first_seconds)

    @classmethod
    def by_probe(cls, task: ProbeTask) -> Ranked:
        """The test records of a probe's task. Raises UsageError as `by_words`."""
        if task.crop is not None:
            raise UsageError(f"{task.name}: the protocol cuts its records into pieces", "choose another, or --labels")
        test = task.parts.test
        codes = tuple(code for code, _ in task.names)
        decided = task.decided_in(test)
        return cls(
            task.name, codes, task.rows[test], task.truth[test], task.patients[test], decided, task.first_seconds
        )

    def drawn(self, records: int, seed: int) -> Ranked:
        """At most so many records, and the classes that they can rank. Raises UserError when none is left."""
        chosen = np.arange(len(self.rows))
        if len(chosen) > records:
            chosen = np.sort(np.random.default_rng([seed, 13]).choice(len(chosen), records, replace=False))
        kept = self.only(chosen)
        columns, _ = usable_classes(kept.truth, kept.decided)
        if not columns.size:
            raise UserError(
                f"no class of {self.name} has both positives and negatives among {len(chosen)} records",
                "evaluate on more records or other folds",
            )
        codes, decided = tuple(self.codes[c] for c in columns), decided_at(kept.decided, columns=columns)
        return replace(kept, codes=codes, truth=kept.truth[:, columns], decided=decided)

    def only(self, places: np.ndarray) -> Ranked:
        """These of its records."""
        rows, truth, patients = self.rows[places], self.truth[places], self.patients[places]
        return replace(self, rows=rows, truth=truth, patients=patients, decided=decided_at(self.decided, places))


def scorer_of_words(
    encoder: UsableEncoder,
    shard_set: ShardSet,
    task: EvaluationTask,
    codes: tuple[str, ...],
    scoring: str | None = None,
) -> Scorer:
    """Scores of these classes of a task by the encoder's own way, or by `scoring`, as in zero-shot evaluation.

    Raises UsageError for a way that it does not have, UserError where it has no text side or does not fit the records.
    """
    way, prompts = scoring or encoder.scorings[0], task.prompts.only(codes)
    if way != COSINE:
        check_told_apart(encoder, prompts)
        texts = list(dict.fromkeys(text for c in prompts.classes for text in (*c.prompts, *c.against)))
        read = reader_of(partial(encoder.text_reader, texts=texts, scoring=way), shard_set)
        return lambda ages, *given: combined(aged(read, ages)(*given).embedding.float().cpu().numpy(), prompts, texts)
    embed = reader_of(encoder.reader, shard_set)
    words = class_words(encoder, prompts)
    return lambda ages, *given: cosines(aged(embed, ages)(*given).embedding.float().cpu().numpy(), words, len(given[0]))


def scorer_of_probe(
    encoder: UsableEncoder,
    shard_set: ShardSet,
    task: ProbeTask,
    codes: tuple[str, ...],
    progress: Progress | None = None,
) -> Scorer:
    """Log odds of these classes by a linear map of the features, learnt from whole records of the training part.

    A class that it cannot learn scores 0 for everybody. Raises UserError where nothing can be learnt or chosen by.
    """
    learn = np.union1d(task.parts.train, task.parts.validation)
    how = EmbedOptions(first_seconds=task.first_seconds, with_features=True)
    embedded = embed_set([encoder], shard_set, task.rows[learn], how, progress)[0]
    assert embedded.features is not None
    places = replace(
        task.parts,
        train=np.searchsorted(learn, task.parts.train),
        validation=np.searchsorted(learn, task.parts.validation),
        test=np.empty(0, dtype=np.int64),
    )
    try:
        found = fitted(
            np.asarray(embedded.features), task.truth[learn], places, decided=decided_at(task.decided, learn)
        )
    except ValueError as error:
        raise UserError(f"{task.name}: {error}", "use more folds to learn from and to choose on") from None
    names = [code for code, _ in task.names]
    learnt = [names[c] for c in found.known.learnt]
    read = reader_of(encoder.reader, shard_set)

    def score(ages: np.ndarray, *given: np.ndarray) -> np.ndarray:
        odds = found.classifier.scores(aged(read, ages)(*given).features.float().cpu().numpy())
        none = np.zeros(len(odds))
        return np.stack([odds[:, learnt.index(code)] if code in learnt else none for code in codes], axis=1)

    return score
