"""The scores behind a figure, record by record, without a record's name: what two evaluations are compared by.

Records stand in an order that follows from their keys alone, and are known by one digest over all of these: whoever
lacks one of the records cannot try out names. Patients are numbered as they come. Legend: S seeds, n records, C
classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.intervals import Sample, together
from cardialign.pretrain.evaluation.scoring import Estimate, decided_at, score_classes, usable_classes


@dataclass(frozen=True)
class ScoredRecords:
    """scores (S, n, C), truth bool (n, C), patients (n,), code and name of each class.

    decided bool (n, C): a class is scored over these records, None = all. rows int64 (n,) of the shard set, and records
    the digest of their keys: before and after `nameless`.
    """

    scores: np.ndarray
    truth: np.ndarray
    patients: np.ndarray
    names: tuple[tuple[str, str], ...]
    decided: np.ndarray | None = None
    rows: np.ndarray | None = None
    records: str = ""

    def nameless(self, shard_set: ShardSet) -> ScoredRecords:
        """The same without what names a record or a patient."""
        assert self.rows is not None
        digests = _key_digests(shard_set, self.rows)
        order = np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)
        _, first, number = np.unique(self.patients[order], return_index=True, return_inverse=True)
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        return replace(
            self,
            scores=self.scores[:, order],
            truth=self.truth[order],
            patients=rank[number],
            decided=None if self.decided is None else self.decided[order],
            rows=None,
            records=_digest_of(digests),
        )


def records_digest(shard_set: ShardSet, rows: np.ndarray) -> str:
    """sha256 that is the same for the same records, in whatever order and shards they lie."""
    return _digest_of(_key_digests(shard_set, rows))


def _key_digests(shard_set: ShardSet, rows: np.ndarray) -> list[bytes]:
    return [hashlib.sha256(shard_set.key(int(row)).encode()).digest() for row in rows]


def _digest_of(digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def joint_samples(systems: Sequence[Sequence[ScoredRecords]], resamples: int = 1000, seed: int = 0) -> list[Sample]:
    """One sample per system over the classes of all its parts, every system on the same resamples of patients.

    Parts are records that were scored apart (folds kept out in turn), the same ones in the same order for each system;
    who has records in two of them weighs the same in both, so patients are named alike in all parts. A part without a
    class that can be ranked is left out. The seeds of a system are averaged within each resample.
    Raises ValueError where records, labels or patients are not the same, or no class can be scored.
    """
    everybody = np.unique(np.concatenate([part.patients for part in systems[0]]))
    pieces: list[list[Sample]] = [[] for _ in systems]
    for parts in zip(*systems, strict=True):
        first = parts[0]
        for each in parts[1:]:
            check_alike(first, each)
        columns, _ = usable_classes(first.truth, first.decided)
        if not columns.size:
            continue
        tables = score_classes(
            [each.scores[:, :, columns] for each in parts],
            first.truth[:, columns],
            first.patients,
            [first.names[c] for c in columns],
            resamples=resamples,
            seed=seed,
            among=everybody,
            decided=decided_at(first.decided, columns=columns),
        )
        for mine, table in zip(pieces, tables, strict=True):
            mine.append(table.sample)
    if not pieces[0]:
        raise ValueError("no class has both positives and negatives")
    return [together(mine) for mine in pieces]


def check_alike(mine: ScoredRecords, theirs: ScoredRecords) -> None:
    """Raises ValueError where the records, their truth or their patients are not the same."""
    same = mine.records == theirs.records and mine.names == theirs.names
    if not same or not np.array_equal(mine.truth, theirs.truth) or not np.array_equal(mine.patients, theirs.patients):
        raise ValueError("not the same records with the same labels and patients")
    if not np.array_equal(_all_decided(mine), _all_decided(theirs)):
        raise ValueError("other labels are left open")


@dataclass(frozen=True)
class PairedFigure:
    """Macro AUROC of both, and their difference with its 95 % interval by patient; NaN where there is none."""

    mine: float
    theirs: float
    difference: Estimate
    records: int
    patients: int


def paired(mine: ScoredRecords, theirs: ScoredRecords, resamples: int = 1000, seed: int = 0) -> PairedFigure:
    """Two encoders on the same records: resampled together, patient by patient (`scoring`).

    Raises ValueError where the records, their truth or their patients are not the same, or no class can be scored.
    """
    check_alike(mine, theirs)
    columns, _ = usable_classes(mine.truth, mine.decided)
    if not columns.size:
        raise ValueError("no class has both positives and negatives")
    a, b = score_classes(
        [mine.scores[:, :, columns], theirs.scores[:, :, columns]],
        mine.truth[:, columns],
        mine.patients,
        [mine.names[c] for c in columns],
        resamples=resamples,
        seed=seed,
        decided=None if mine.decided is None else mine.decided[:, columns],
    )
    difference, _ = a.less(b)
    return PairedFigure(a.macro.value, b.macro.value, difference, len(mine.truth), int(np.unique(mine.patients).size))


def _all_decided(scored: ScoredRecords) -> np.ndarray:
    return np.ones_like(scored.truth) if scored.decided is None else scored.decided
