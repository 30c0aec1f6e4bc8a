"""Ranking metrics with honest intervals: AUROC per class and macro, resampled by patient, and paired differences between two encoders.

Shapes: n records, C classes, R bootstrap resamples. Records of one patient are not independent, so a resample draws patients with replacement and
takes all records of each; a resample is then nothing but a whole-number weight per record, and AUROC with weights needs one sort per class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CHUNK_ELEMENTS = 4_000_000
"""Resamples are handled in chunks of about this many weights (32 MB of float64), whatever the number of records."""


def auroc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """AUROC of one class: the chance that a positive outranks a negative, ties counting one half (Mann-Whitney; Hanley and McNeil 1982).

    scores (n,) any real numbers, truth (n,) bool, weights (R, n) non-negative or None for one unweighted figure. Returns float64 (R,), or (1,)
    without weights; NaN where positives or negatives have no weight.
    Raises ValueError on shapes that disagree and on non-finite scores.
    """
    scores = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(truth, dtype=bool)
    if scores.ndim != 1 or truth.shape != scores.shape:
        raise ValueError(
            f"scores and truth must be one-dimensional and of one length, got {scores.shape} and {truth.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite")
    weights = np.ones((1, scores.size)) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.ndim != 2 or weights.shape[1] != scores.size:
        raise ValueError(f"weights must be (R, {scores.size}), got {weights.shape}")

    order = np.argsort(scores, kind="stable")
    ranked, positive = scores[order], truth[order]
    ranked_weights = weights[:, order]
    negatives_before = np.zeros((weights.shape[0], scores.size + 1))
    np.cumsum(np.where(positive, 0.0, ranked_weights), axis=1, out=negatives_before[:, 1:])

    at = np.flatnonzero(positive)
    first = np.searchsorted(ranked, ranked[at], side="left")
    last = np.searchsorted(ranked, ranked[at], side="right")
    outranked = 0.5 * (negatives_before[:, first] + negatives_before[:, last])
    positive_weights = ranked_weights[:, at]
    pairs = positive_weights.sum(axis=1) * negatives_before[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (positive_weights * outranked).sum(axis=1) / pairs, np.nan)


def class_auroc(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """AUROC of every class: scores (n, C), truth (n, C) bool -> float64 (C,), NaN for a class without positives or without negatives."""
    return np.array([auroc(scores[:, c], truth[:, c])[0] for c in range(scores.shape[1])])


def patient_resamples(patients: Sequence[str] | np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap weights by patient: yields float64 (r, n) chunks, `resamples` rows in all; row k is a pure function of (seed, k, patients).

    Each row draws as many patients as there are, with replacement; a record's weight is how often its patient was drawn.
    """
    _, patient_of = np.unique(np.asarray(patients), return_inverse=True)
    count = int(patient_of.max()) + 1 if patient_of.size else 0
    rows = max(1, CHUNK_ELEMENTS // max(1, patient_of.size))
    for start in range(0, resamples, rows):
        chunk = np.empty((min(rows, resamples - start), patient_of.size))
        for k in range(chunk.shape[0]):
            drawn = np.random.default_rng([seed, start + k]).integers(0, count, count)
            chunk[k] = np.bincount(drawn, minlength=count)[patient_of]
        yield chunk


def bootstrap_auroc(
    scores: Sequence[np.ndarray],
    truth: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[np.ndarray]:
    """AUROC of every class in every patient resample, for one or more score sets over the same resamples (which makes differences paired).

    scores: list of (n, C); truth (n, C) bool; patients (n,). Returns a list of float64 (R, C), NaN where a resample lost all positives or negatives.
    """
    out = [np.full((resamples, truth.shape[1]), np.nan) for _ in scores]
    done = 0
    for weights in patient_resamples(patients, resamples, seed):
        for table, values in zip(out, scores, strict=True):
            for c in range(truth.shape[1]):
                table[done : done + len(weights), c] = auroc(values[:, c], truth[:, c], weights)
        done += len(weights)
    return out


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of (R,) values, NaN ones left out; (nan, nan) when fewer than two are left."""
    finite = values[np.isfinite(values)]
    if finite.size < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def row_means(table: np.ndarray) -> np.ndarray:
    """Mean over the defined classes of each resample: (R, C) with NaNs -> (R,); NaN for a row without any."""
    defined = np.isfinite(table)
    count = defined.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, np.where(defined, table, 0.0).sum(axis=1) / count, np.nan)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval (patient-cluster percentile bootstrap)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: np.ndarray) -> Estimate:
        return cls(float(value), *percentile_interval(resampled))


def usable_classes(truth: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """Columns of truth (n, C) that have both positives and negatives, and for every other column the reason why AUROC is undefined."""
    positives = truth.sum(axis=0)
    reasons: dict[int, str] = {}
    for c, count in enumerate(positives):
        if count == 0:
            reasons[c] = f"no positives among {len(truth)} records"
        elif count == len(truth):
            reasons[c] = f"no negatives among {len(truth)} records"
    return np.array([c for c in range(truth.shape[1]) if c not in reasons], dtype=np.int64), reasons
