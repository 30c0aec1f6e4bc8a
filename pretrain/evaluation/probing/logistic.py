"""Regularised logistic regression of many classes at once, on features that are computed once.

Per class the objective of scikit-learn's `LogisticRegression`: strength x sum of log losses + |w|^2 / 2, the intercept
free. The classes share their products with the features, so that 71 classes cost little more than one.
A record that leaves a class open is none of its records.
Legend: n records, F features, C classes, r = min(n, F).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

MOST_STEPS = 500
GRADIENT = 1e-6
"""Stop when no slope, per record, is larger. Scores then agree with those at the minimum to three digits."""


@dataclass(frozen=True)
class LogisticClassifier:
    """weights float64 (F, C) of the features as they come in, intercepts (C,), and the strength they were fitted at."""

    weights: np.ndarray
    intercepts: np.ndarray
    strength: float

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Features (m, F) -> log odds float64 (m, C)."""
        return features.astype(np.float64) @ self.weights + self.intercepts


def fit_path(
    features: np.ndarray, truth: np.ndarray, strengths: Sequence[float], decided: np.ndarray | None = None
) -> list[LogisticClassifier]:
    """Features (n, F), truth bool (n, C) -> one classifier per strength, each fitted from where the one before ended.

    decided bool (n, C): a class is fitted on these records only, None = all. Features are standardised by the n records
    themselves, whose labels have no say in it; one that never changes has no weight. Strengths ascend: from much
    regularised to little. Raises ValueError when a class has no positives or no negatives, or a feature is not finite.
    """
    if decided is not None and decided.all():
        decided = None
    counted = truth if decided is None else truth & decided
    positives, records = counted.sum(axis=0), len(truth) if decided is None else decided.sum(axis=0)
    if not ((positives > 0) & (positives < records)).all():
        raise ValueError("every class needs positives and negatives among the records it is fitted on")
    if not np.isfinite(features).all():
        raise ValueError("the features hold values that are not finite")
    exact = features.astype(np.float64)
    mean, deviation = exact.mean(axis=0), exact.std(axis=0)
    scale = np.where(deviation > 1e-9 * np.maximum(np.abs(mean), 1.0), 1.0 / np.maximum(deviation, 1e-300), 0.0)
    basis, reduced = _principal((exact - mean) * scale)
    classes = truth.shape[1]
    wanted = _Wanted.of(counted, decided)
    rate = wanted.rate
    point = np.concatenate([np.zeros((reduced.shape[1], classes)), np.log(rate / (1 - rate))[None]]).ravel()
    out = []
    for strength in sorted(strengths):
        point = _minimum(point, reduced, wanted, strength)
        solved = point.reshape(-1, classes)
        weights = basis @ solved[:-1] * scale[:, None]
        out.append(LogisticClassifier(weights, solved[-1] - mean @ weights, float(strength)))
    return out


def _principal(standard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal basis (F, r) of principal axes and coordinates (n, r): the penalty knows no others."""
    n, F = standard.shape
    if n >= F:
        axes = np.linalg.eigh(standard.T @ standard)[1]
        return axes, standard @ axes
    left, sizes, right = np.linalg.svd(standard, full_matrices=False)
    return right.T, left * sizes


@dataclass(frozen=True)
class _Wanted:
    """targets float64 (n, C), 0 or 1; rate (C,) of positives among the records of each class.

    counts, penalty   what a record counts for a class, float64 (n, C), and its penalty (C,): 0 where it is left open,
                      and the rest so much more that the mean is that of the decided records. 1.0 where all are.
    """

    targets: np.ndarray
    rate: np.ndarray
    counts: np.ndarray | float = 1.0
    penalty: np.ndarray | float = 1.0

    @classmethod
    def of(cls, truth: np.ndarray, decided: np.ndarray | None) -> _Wanted:
        targets = truth.astype(np.float64)
        if decided is None:
            return cls(targets, truth.sum(axis=0) / len(truth))
        records = decided.sum(axis=0)
        penalty = len(truth) / records
        return cls(targets, truth.sum(axis=0) / records, decided * penalty, penalty)

    def mean_squares(self, features: np.ndarray) -> np.ndarray:
        """Of each feature (n, F) over the records of each class: (F, C), or (F, 1) where all classes have all."""
        if isinstance(self.counts, float):
            return np.mean(features**2, axis=0)[:, None]
        return (features**2).T @ self.counts / len(features)


def _minimum(start: np.ndarray, features: np.ndarray, wanted: _Wanted, strength: float) -> np.ndarray:
    """The minimum in coordinates in which the valley is about as wide as it is long.

    Features of encoders vary a thousand times as much along some axes as along others: along each the slope changes by
    about its variance x rate (1 - rate) + 1 / (strength n), and a step is measured by that.
    """
    targets, rate, counts, penalty = wanted.targets, wanted.rate, wanted.counts, wanted.penalty
    n, classes = targets.shape
    curved = wanted.mean_squares(features) * (rate * (1 - rate)) + penalty / (strength * n)
    unit = np.concatenate([1 / np.sqrt(curved), 1 / np.sqrt(rate * (1 - rate))[None]])  # (r + 1, C)

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        parts = point.reshape(-1, classes) * unit
        weights, intercepts = parts[:-1], parts[-1]
        logits = features @ weights + intercepts
        losses = (np.logaddexp(0.0, logits) - targets * logits) * counts
        value = losses.sum() / n + 0.5 * float((weights * weights * penalty).sum()) / (strength * n)
        errors = (expit(logits) - targets) * counts / n
        slope = np.empty_like(parts)
        slope[:-1] = features.T @ errors + weights * penalty / (strength * n)
        slope[-1] = errors.sum(axis=0)
        return float(value), (slope * unit).ravel()

    begin = (start.reshape(-1, classes) / unit).ravel()
    found = minimize(
        objective, begin, jac=True, method="L-BFGS-B", options={"maxiter": MOST_STEPS, "gtol": GRADIENT, "ftol": 1e-12}
    )
    return (found.x.reshape(-1, classes) * unit).ravel()
