"""How alike the reports inside a global batch are, and what that means for the loss: which pairs are no honest
negatives, and where to set the thresholds.

The batches are those of a run (`cardialign.data_shards.order.global_order`). B global batch, n records, P sampled pairs
of two different records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.order.global_order import GlobalOrder
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import TextBank

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
PAIR_BATCH = 256
"""Largest part of a batch whose pairs are all looked at; the distribution over pairs does not depend on B."""
ENOUGH_PAIRS = 200
"""Fewer pairs of a kind say too little about it for a threshold."""
MIMIC_RAW_MEAN = 0.835
"""Mean raw cosine of two MIMIC-IV-ECG reports with MedCPT: 745,447 reports, batches of 256 (a published
measurement)."""


@dataclass(frozen=True)
class Spread:
    """Distribution of one similarity over pairs of records of one batch."""

    mean: float
    deviation: float
    low: float
    high: float
    percentiles: dict[str, float]

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        points = np.percentile(values, PERCENTILES)
        named = {str(p): round(float(v), 4) for p, v in zip(PERCENTILES, points, strict=True)}
        mean, deviation, low, high = (
            round(float(v), 4) for v in (values.mean(), values.std(), values.min(), values.max())
        )
        return cls(mean, deviation, low, high, named)


@dataclass(frozen=True)
class Duplicates:
    """Exact duplicates in batches of `global_batch`: per record the others with its very report, and the share of
    records that have any."""

    global_batch: int
    batches: int
    per_record: float
    share_of_records: float


@dataclass(frozen=True)
class Thresholds:
    """What to set in the recipe: negatives count fully below `low` and not at all from `high` on.

    `reason` says where they come from.

    effective_negatives: global batch -> mean over records of sum_j alpha(S_ij) with the `ramp` form and without
    duplicates, of B - 1.
    """

    similarity: str
    low: float
    high: float
    reason: str
    effective_negatives: dict[str, float]

    def yaml(self) -> list[str]:
        """Lines for the recipe."""
        return [
            "method:",
            f"  similarity: {self.similarity}",
            "  weighting: ramp",
            f"  low: {self.low:.2f}",
            f"  high: {self.high:.2f}",
            "  drop_duplicates: true",
        ]


@dataclass(frozen=True)
class SimilarityStatistics:
    """All of it; `to_dict` is JSON-able."""

    records: int
    reports: int
    pairs: int
    raw: Spread
    centred: Spread
    jaccard: Spread
    duplicate_pairs: float
    duplicates: list[Duplicates]
    suggested: list[Thresholds]
    left_out: list[str]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "yaml": {each.similarity: each.yaml() for each in self.suggested}}


@dataclass(frozen=True)
class _Pairs:
    raw: np.ndarray
    centred: np.ndarray
    jaccard: np.ndarray
    same: np.ndarray  # bool: one and the same report


def similarity_statistics(
    shard_set: ShardSet,
    bank: TextBank,
    rows: np.ndarray,
    *,
    fingerprint: str,
    global_batches: Sequence[int] = (256, 1024, 4096),
    batches: int = 8,
    seed: int = 0,
    patient_disjoint: bool = True,
) -> SimilarityStatistics:
    """Look at the first `batches` global batches of each size over `rows` (records with a report); `fingerprint` of
    their selection.

    Raises UsageError for sizes below 2, DataError when there are fewer records than the smallest global batch.
    """
    if batches < 1 or not global_batches or min(global_batches) < 2:
        raise UsageError(
            f"batches={batches}, global batches {list(global_batches)}",
            "give at least one batch of at least two records",
        )
    possible = sorted({size for size in global_batches if size <= len(rows)})
    if not possible:
        raise DataError(
            f"{shard_set.path} has {len(rows)} records with a report in this selection, fewer than the smallest global "
            f"batch {min(global_batches)}",
            f"ask for smaller ones: --global-batch {max(2, len(rows) // 4)}",
        )
    patients = shard_set.patients[rows] if patient_disjoint else None
    duplicates, drawn = [], []
    for size in possible:
        order = GlobalOrder(rows, patients, size, seed, fingerprint)
        reports = [shard_set.report[order.batch(step)] for step in range(batches)]
        duplicates.append(_duplicates(reports, size))
        if size == possible[0]:
            drawn = [part for each in reports for part in np.array_split(each, -(-len(each) // PAIR_BATCH))]
    pairs = _pairs(bank, drawn)
    suggested = [_embedding_thresholds(pairs, possible), _statement_thresholds(pairs, possible)]
    return SimilarityStatistics(
        records=len(rows),
        reports=len(np.unique(shard_set.report[rows])),
        pairs=pairs.raw.size,
        raw=Spread.of(pairs.raw),
        centred=Spread.of(pairs.centred),
        jaccard=Spread.of(pairs.jaccard),
        duplicate_pairs=round(float(pairs.same.mean()), 6),
        duplicates=duplicates,
        suggested=suggested,
        left_out=[
            f"global batch {size}: only {len(rows)} records" for size in sorted(set(global_batches) - set(possible))
        ],
    )


def _duplicates(batches: Sequence[np.ndarray], size: int) -> Duplicates:
    others = []
    for reports in batches:
        _, place, counts = np.unique(reports, return_inverse=True, return_counts=True)
        others.append(counts[place] - 1)
    found = np.concatenate(others)
    return Duplicates(size, len(batches), round(float(found.mean()), 3), round(float((found > 0).mean()), 4))


def _pairs(bank: TextBank, batches: Sequence[np.ndarray]) -> _Pairs:
    parts = []
    for reports in batches:
        upper = np.triu_indices(len(reports), 1)
        raw, centred = bank.embedding(reports), bank.centred(reports)
        parts.append(
            (
                (raw @ raw.T)[upper],
                (centred @ centred.T)[upper],
                bank.jaccard(reports)[upper],
                reports[upper[0]] == reports[upper[1]],
            )
        )
    return _Pairs(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _embedding_thresholds(pairs: _Pairs, sizes: Sequence[int]) -> Thresholds:
    """`low` where pairs without a common statement end, `high` in the middle of pairs that share at least half of their
    statements."""
    different = ~pairs.same
    unrelated, kin = pairs.centred[different & (pairs.jaccard == 0)], pairs.centred[different & (pairs.jaccard >= 0.5)]
    if min(unrelated.size, kin.size) >= ENOUGH_PAIRS:
        low, high = max(0.0, float(np.percentile(unrelated, 90))), float(np.median(kin))
        if high - low >= 0.1:
            reason = (
                "low: 90 % of the pairs that share no statement lie below (but not under 0, the average pair); high: "
                "half of the pairs that share at least half of their statements lie above"
            )
            return _thresholds("embedding", low, high, reason, pairs.centred, pairs, sizes)
    others = pairs.centred[different] if different.any() else pairs.centred
    low, high = (float(v) for v in np.percentile(others, (75, 99)))
    reason = (
        "low, high: 75th and 99th percentile of pairs of different reports (statement sets say too little here to do "
        "better)"
    )
    return _thresholds("embedding", low, high, reason, pairs.centred, pairs, sizes)


def _statement_thresholds(pairs: _Pairs, sizes: Sequence[int]) -> Thresholds:
    reason = (
        "low: a third of the statements in common; high: four in five (these need no measurement: the overlap has a "
        "meaning of its own)"
    )
    return _thresholds("statements", 1 / 3, 0.8, reason, pairs.jaccard, pairs, sizes)


def _thresholds(
    similarity: str, low: float, high: float, reason: str, values: np.ndarray, pairs: _Pairs, sizes: Sequence[int]
) -> Thresholds:
    low = round(low, 2)
    high = round(max(high, low + 0.01), 2)
    alpha = np.where(pairs.same, 0.0, np.clip((high - values) / (high - low), 0.0, 1.0)).mean()
    return Thresholds(similarity, low, high, reason, {str(size): round(float(alpha) * (size - 1), 1) for size in sizes})
