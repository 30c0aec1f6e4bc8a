"""An encoder on records of which parts are missing: at random, where the evidence is, or where it hurts most.

Legend: n records, C classes, D random draws, T samples.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from cardialign.data_shards.cohort.evidence import evidence_leads
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import iterate_rows
from cardialign.pretrain.evaluation.features import Progress, reader_of
from cardialign.pretrain.evaluation.missingness.cmrs import separation
from cardialign.pretrain.evaluation.missingness.masks import (
    KINDS,
    LEADS,
    Units,
    highest,
    lead_units,
    mean_by_unit,
    random_units,
    recorded_samples,
    units_of,
)
from cardialign.pretrain.evaluation.missingness.search import worst_units
from cardialign.pretrain.evaluation.scoring import usable_classes
from cardialign.pretrain.evaluation.task import EvaluationTask
from cardialign.pretrain.evaluation.zero_shot import class_words, cosines
from cardialign.pretrain.export.ages import aged
from cardialign.pretrain.export.usable import UsableEncoder

log = logging.getLogger(__name__)

Ranking = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""signal (12, T) mV, lead_mask (12,), valid samples -> how gladly each sample is removed, float (12, T)."""


@dataclass(frozen=True)
class MissingnessOptions:
    """kinds: what is missing (`masks.KINDS`), share of it; records: at most so many, drawn by `seed`.

    draws: random masks per record. rounds: of the search (`search.worst_units`).
    """

    kinds: tuple[str, ...] = KINDS
    share: float = 0.5
    records: int = 500
    draws: int = 3
    rounds: int = 1
    seed: int = 0
    batch_size: int = 64
    threads: int = 2


@dataclass(frozen=True)
class MaskedScores:
    """Cosines of one encoder under one kind of mask.

    mask: `random`, `adversarial` or `masker`, of the units of `kind` that a record has; `evidence` and
    `random as evidence` are of leads.
    scores float32 (D, n, C), NaN where a class or record has no such mask; budget of units: 0 where it differs.
    """

    kind: str
    mask: str
    units: int
    budget: int
    scores: np.ndarray


@dataclass(frozen=True)
class Scored:
    """whole (n, C), blank (C,) cosines, and those under every mask.

    by_record    masks of a record's own: what CMRS is made of
    by_class     masks of a class's own evidence, the same leads for every record: AUROC of that class alone
    """

    task: EvaluationTask
    whole: np.ndarray
    blank: np.ndarray
    by_record: tuple[MaskedScores, ...]
    by_class: tuple[MaskedScores, ...]
    seconds: float


def drawn_records(task: EvaluationTask, records: int, seed: int) -> EvaluationTask:
    """At most so many records of a task, in its order. Those that have no class, or every one, have no Delta.

    Raises UserError when none is left.
    """
    known = np.ones_like(task.truth) if task.decided is None else task.decided
    usable = np.flatnonzero((task.truth & known).any(axis=1) & (~task.truth & known).any(axis=1))
    if not usable.size:
        raise UserError(
            f"no record has a class of {task.prompts.name} and lacks another",
            "choose other records, or prompts of more than one class",
        )
    if usable.size > records:
        chosen = np.random.default_rng([seed, 12]).choice(usable.size, records, replace=False)
        usable = usable[np.sort(chosen)]
    decided = None if task.decided is None else task.decided[usable]
    return replace(
        task, rows=task.rows[usable], truth=task.truth[usable], patients=task.patients[usable], decided=decided
    )


def score_missing(
    encoder: UsableEncoder,
    shard_set: ShardSet,
    task: EvaluationTask,
    options: MissingnessOptions,
    ranking: Ranking | None = None,
    progress: Progress | None = None,
) -> Scored:
    """Every record of the task whole, blank, and under every mask. ranking: of a trained masker.

    Gaps are shown as `UsableEncoder.gap_reader` says. Raises UserError when the encoder has no text side or the records
    do not fit it, UsageError for a kind that is not there, DataError when a record is damaged.
    """
    started = time.monotonic()
    read = reader_of(encoder.gap_reader, shard_set)
    words = class_words(encoder, task.prompts)
    units = [units_of(kind, shard_set.spec) for kind in options.kinds]

    def score(
        signal: np.ndarray, lead_mask: np.ndarray, valid: int, missing: np.ndarray, age: float = np.nan
    ) -> np.ndarray:
        """One record (12, T) under R masks (R, 12, T) -> cosines (R, C)."""
        found = []
        for at in range(0, len(missing), options.batch_size):
            part = missing[at : at + options.batch_size]
            many = np.repeat(signal[None], len(part), axis=0), np.repeat(lead_mask[None], len(part), axis=0)
            output = aged(read, np.full(len(part), age, dtype=np.float32))(
                *many, np.full(len(part), valid, dtype=np.int64), part
            )
            found.append(cosines(output.embedding.float().cpu().numpy(), words, options.batch_size))
        return np.concatenate(found)

    everything = np.ones((1, LEADS, shard_set.spec.samples), dtype=bool)
    zero = np.zeros(everything.shape[1:], dtype=np.float32)
    blank = score(zero, np.ones(LEADS, dtype=bool), shard_set.spec.samples, everything)[0]
    leads, evidence = units_of("leads", shard_set.spec), evidence_of(task)
    parts: list[_Record] = []
    for signal, lead_mask, valid, age in _records(shard_set, task.rows, options):
        of_age = partial(score, age=age)
        one = _Masking(task, len(parts), options, signal, lead_mask, valid, of_age, leads, evidence)
        parts.append(one.run(units, ranking))
        if progress is not None:
            progress(len(parts), len(task.rows))
    by_record = [_stacked([part.by_record[k] for part in parts]) for k in range(len(parts[0].by_record))]
    by_class = [_stacked([part.by_class[k] for part in parts]) for k in range(len(parts[0].by_class))]
    seconds = time.monotonic() - started
    log.info("missing records=%d seconds=%.1f encoder=%s", len(parts), seconds, encoder.digest[:24])
    return Scored(task, np.stack([part.whole for part in parts]), blank, tuple(by_record), tuple(by_class), seconds)


def _records(
    shard_set: ShardSet, rows: np.ndarray, options: MissingnessOptions
) -> Iterator[tuple[np.ndarray, np.ndarray, int, float]]:
    for batch in iterate_rows(shard_set, rows, options.batch_size, options.threads):
        for k in range(len(batch.rows)):
            yield batch.signal[k], batch.lead_mask[k], int(batch.valid_samples[k]), float(batch.age_years[k])


def _stacked(parts: Sequence[MaskedScores]) -> MaskedScores:
    """Of single records, scores (D, C), those of all, (D, n, C)."""
    units, budgets = max(part.units for part in parts), {part.budget for part in parts}
    one = budgets.pop() if len(budgets) == 1 and all(part.units == units for part in parts) else 0
    return replace(parts[0], units=units, budget=one, scores=np.stack([part.scores for part in parts], axis=1))


@dataclass(frozen=True)
class _Record:
    whole: np.ndarray
    by_record: list[MaskedScores]
    by_class: list[MaskedScores]


@dataclass(frozen=True)
class _Masking:
    """One record and its place in the task, under all masks."""

    task: EvaluationTask
    place: int
    options: MissingnessOptions
    signal: np.ndarray
    lead_mask: np.ndarray
    valid: int
    score: Callable[..., np.ndarray]
    leads: Units
    evidence: np.ndarray

    @cached_property
    def there(self) -> np.ndarray:
        return recorded_samples(self.lead_mask, self.valid, self.signal.shape[1])

    def scores(self, missing: np.ndarray) -> np.ndarray:
        return self.score(self.signal, self.lead_mask, self.valid, missing)

    def delta(self, missing: np.ndarray) -> np.ndarray:
        here = slice(self.place, self.place + 1)
        decided = None if self.task.decided is None else self.task.decided[here]
        return separation(self.scores(missing)[:, None], self.task.truth[here], decided)[:, 0]

    def random(self, units: Units, budget: int) -> np.ndarray:
        """Cosines (D, C) of the random masks."""
        row = int(self.task.rows[self.place])
        drawn = [random_units(units, budget, self.options.seed, row, d) for d in range(self.options.draws)]
        return self.scores(units.mask(np.stack(drawn)))

    def run(self, kinds: Sequence[Units], ranking: Ranking | None) -> _Record:
        whole = self.scores(np.zeros((1, *self.signal.shape), dtype=bool))[0]
        gladly = None if ranking is None else ranking(self.signal, self.lead_mask, self.valid)
        found = []
        for units in (each.recorded(self.there) for each in kinds):
            budget, size = units.budget(self.options.share), len(units)
            worst = worst_units(units, budget, self.delta, self.options.rounds)
            found.append(MaskedScores(units.kind, "random", size, budget, self.random(units, budget)))
            chosen = {"adversarial": worst}
            if gladly is not None:
                chosen["masker"] = highest(mean_by_unit(gladly, units, self.there), budget)
            found += [
                MaskedScores(units.kind, name, size, budget, self.scores(units.mask(which[None])))
                for name, which in chosen.items()
            ]
        return _Record(whole, [*found, *self._evidence()], self._evidence_of_classes())

    def _evidence(self) -> list[MaskedScores]:
        """Without the leads of all findings that the record has, and without as many at random."""
        C, D = self.task.truth.shape[1], self.options.draws
        own, chance = np.full((1, C), np.nan, dtype=np.float32), np.full((D, C), np.nan, dtype=np.float32)
        places = self.evidence[self.task.truth[self.place]]
        leads, gone = self.leads.recorded(self.there), places.any(axis=0) & self.there.any(axis=1)
        if places.any(axis=1).all() and 0 < gone.sum() < len(leads):
            own = self.scores(self.leads.mask(gone[None]))
            chance = self.random(leads, int(gone.sum()))
        return [_of_leads("evidence", own), _of_leads("random as evidence", chance)]

    def _evidence_of_classes(self) -> list[MaskedScores]:
        """Every class without the leads of its own evidence, whatever the record has, and without as many at random."""
        C, D = self.task.truth.shape[1], self.options.draws
        own, chance = np.full((1, C), np.nan, dtype=np.float32), np.full((D, C), np.nan, dtype=np.float32)
        for gone in np.unique(self.evidence, axis=0):
            if 0 < gone.sum() < LEADS:
                columns = (self.evidence == gone).all(axis=1)
                own[:, columns] = self.scores(self.leads.mask(gone[None]))[:, columns]
                chance[:, columns] = self.random(self.leads, int(gone.sum()))[:, columns]
        return [_of_leads("evidence", own), _of_leads("random as evidence", chance)]


def _of_leads(mask: str, scores: np.ndarray) -> MaskedScores:
    return MaskedScores("leads", mask, LEADS, 0, scores)


def evidence_of(task: EvaluationTask) -> np.ndarray:
    """bool (C, 12): the leads of each class's primary evidence; none where they are not known or no AUROC is."""
    found = np.stack([lead_units(evidence_leads(code)) for code in task.prompts.codes])
    ranked = np.zeros(len(found), dtype=bool)
    ranked[usable_classes(task.truth, task.decided)[0]] = True
    return found & ranked[:, None]
