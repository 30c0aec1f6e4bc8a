"""95 % intervals of AUROCs and of their mean that hold for rare findings, too.

The spread is that of resamples of whole patients, widened for the few there are. Three patients say little about their
own spread, so it is held against what the binormal model expects of such an AUROC, the more the fewer patients there
are (as Smyth 2004 moderates variances of few arrays). The limits are the AUROCs that differ just so much from the
figure, measured by *their* spread (score intervals, as Newcombe 2006, method 5): they never leave 0..1, are wider
towards 0.5, and do not shrink to a point where a small sample happens to be ranked without a fault. Few resamples say
little, too: their number counts in the degrees of freedom (1,000 cost 2 % of 20 of them).
Shapes: C classes, R resamples. Counts are of patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, owens_t
from scipy.stats import t as student

LEVEL = 0.95
MODEL_FREEDOM = 3.0
"""Degrees of freedom that the model is worth beside the resamples."""
TAIL = 0.4
"""Degrees of freedom of a spread of placements (in 0..1, skewed) in terms of those of a normal one; from simulation."""
_FURTHEST = 12.0
_HALVINGS = 60


@dataclass(frozen=True)
class Sample:
    """What is known of C classes: point (C,) AUROC, resampled (R, C) AUROC in every resample, patients having and
    lacking each (C,)."""

    point: np.ndarray
    resampled: np.ndarray
    having: np.ndarray
    lacking: np.ndarray

    def only(self, columns: np.ndarray) -> Sample:
        return Sample(self.point[columns], self.resampled[:, columns], self.having[columns], self.lacking[columns])

    @property
    def fewest(self) -> np.ndarray:
        return np.minimum(self.having, self.lacking).astype(np.float64)

    @property
    def deviations(self) -> np.ndarray:
        """(R, C) with the variance that k patients have: drawn weights show (k - 1) / (k + 1) of it, of one patient
        nothing."""
        k = self.fewest
        return (self.resampled - self.point) * np.sqrt((k + 1) / np.maximum(k - 1, 1))

    @property
    def near(self) -> np.ndarray:
        """(C,) AUROCs a little towards their mean: where the model can say something of one that is 0 or 1."""
        pulled = (self.fewest * self.point + self.point.mean().clip(0.02, 0.98)) / (self.fewest + 1)
        return pulled.clip(1e-3, 1 - 1e-3)


def together(parts: Sequence[Sample]) -> Sample:
    """Samples of several parts over the same resamples as one over all their classes."""
    return Sample(
        np.concatenate([part.point for part in parts]),
        np.concatenate([part.resampled for part in parts], axis=1),
        np.concatenate([part.having for part in parts]),
        np.concatenate([part.lacking for part in parts]),
    )


def mean_interval(sample: Sample) -> tuple[float, float]:
    """Limits for the mean AUROC of the classes of `sample`.

    (nan, nan) with fewer than two resamples, and of one patient alone: nothing says how patients differ.
    """
    if len(sample.resampled) < 2 or np.maximum(sample.having, sample.lacking).max() < 2:
        return float("nan"), float("nan")
    classes, mean = len(sample.point), float(sample.point.mean())
    ratio, freedom = _moderated(sample)
    quantile = student.ppf((1 + LEVEL) / 2, freedom)
    start = ndtri(sample.near)

    def at(shift: float) -> tuple[float, float]:
        """Mean and half width where every class is `shift` probits better than `near`."""
        values = ndtr(start + shift)
        variance = ratio * binormal_variance(values, sample.having, sample.lacking).sum()
        return float(values.mean()), float(quantile * np.sqrt(variance) / classes)

    def furthest(side: int) -> float:
        """Where the mean of `side` (-1 below, 1 above) is so far off that the figure lies on its limit."""
        low, high = -_FURTHEST, _FURTHEST
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            value, half = at(middle)
            above = mean - value - half <= 0 if side < 0 else value - mean - half > 0
            low, high = (low, middle) if above else (middle, high)
        return at((low + high) / 2)[0]

    return min(furthest(-1), mean), max(furthest(1), mean)


def difference_interval(a: Sample, b: Sample) -> tuple[float, float]:
    """Limits for the mean AUROC of `a` less that of `b`, scored on the same records and resamples.

    (nan, nan) with fewer than two resamples, or where no class has two patients.
    """
    return change_interval([(a, 1.0), (b, -1.0)])


def change_interval(parts: Sequence[tuple[Sample, float]]) -> tuple[float, float]:
    """Limits for a signed sum of mean AUROCs over the same classes, records and resamples; nan as for a difference.

    They lie within what such a sum can be.

    Each class counts by its own patients.
    """
    first = parts[0][0]
    known = first.fewest >= 2
    if len(first.resampled) < 2 or not known.any():
        return float("nan"), float("nan")
    model = sum((_model(each) for each, _ in parts), np.zeros(len(first.point))) / len(parts)
    paired = np.sum([sign * each.deviations for each, sign in parts], axis=0)[:, known].sum(axis=1)
    variance = float(np.var(paired, ddof=1)) * model.sum() / model[known].sum()
    freedom = max(drawn_freedom(_freedom(model[known], first.fewest[known]), len(first.resampled)), 1.0)
    half = float(student.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance)) / len(model)
    value = float(sum(sign * each.point.mean() for each, sign in parts))
    signs = [sign for _, sign in parts]
    low, high = sum(min(sign, 0.0) for sign in signs), sum(max(sign, 0.0) for sign in signs)
    return max(low, value - half), min(high, value + half)


def unlike_difference_interval(a: Sample, b: Sample) -> tuple[float, float]:
    """The same where `a` and `b` have other classes or other records, resampled with the same weights of patients.

    Each mean has its own classes; what both share of their patients falls out of the difference.
    (nan, nan) with fewer than two resamples, or where no class of one of them has two patients.
    """
    means, freedoms = [], []
    for each in (a, b):
        known, model = each.fewest >= 2, _model(each)
        if len(each.resampled) < 2 or not known.any():
            return float("nan"), float("nan")
        unseen = np.sqrt(model.sum() / model[known].sum())
        means.append(each.deviations[:, known].sum(axis=1) * unseen / len(model))
        freedoms.append(drawn_freedom(_freedom(model[known], each.fewest[known]), len(each.resampled)))
    freedom = max(min(freedoms), 1.0)
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * float(np.std(means[0] - means[1], ddof=1))
    difference = float(a.point.mean() - b.point.mean())
    return max(difference - half, -1.0), min(difference + half, 1.0)


def binormal_variance(auroc: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Variance of the AUROC of so many independent positives and negatives whose scores are normal with equal spread.

    By Hanley and McNeil 1982, equation 1; the chance that one outranks two is that of two normal variables that
    correlate with 1/2 (Owen 1956). Any shape; auroc in 0..1.
    """
    pair = auroc * (1 - auroc)
    shared = pair - 2 * owens_t(ndtri(auroc.clip(1e-12, 1 - 1e-12)), 1 / np.sqrt(3))
    return np.maximum(pair + (positives + negatives - 2) * shared, 0) / (positives * negatives)


def _model(sample: Sample) -> np.ndarray:
    return binormal_variance(sample.near, sample.having, sample.lacking)


def _freedom(model: np.ndarray, fewest: np.ndarray) -> float:
    """Degrees of freedom of a sum of variances (Satterthwaite 1946)."""
    return float(TAIL * model.sum() ** 2 / (model**2 / (fewest - 1)).sum())


def drawn_freedom(freedom: float, resamples: int) -> float:
    """What is left of the degrees of freedom of a variance where so many resamples were drawn to see it: the relative
    variances of both, 2 / freedom and 2 / (resamples - 1), add up."""
    return 1 / (1 / freedom + 1 / (resamples - 1))


def _moderated(sample: Sample) -> tuple[float, float]:
    """How the spread compares with the model's, and the degrees of freedom of that."""
    model, known = _model(sample), sample.fewest >= 2
    if not known.any():
        return 1.0, np.inf
    observed = float(np.var(sample.deviations[:, known].sum(axis=1), ddof=1)) / float(model[known].sum())
    freedom = drawn_freedom(_freedom(model[known], sample.fewest[known]), len(sample.resampled))
    both = freedom + MODEL_FREEDOM
    return (freedom * observed + MODEL_FREEDOM) / both, both**2 / freedom
