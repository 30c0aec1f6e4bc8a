"""Ranking metrics with honest intervals: AUROC per class and macro, resampled by patient.

Encoders that are scored together are resampled alike, which makes their differences paired.
Shapes: n records, C classes, R bootstrap resamples. Records of one patient are not independent, so a resample weighs
patients, each with all its records, and AUROC with weights needs one sort per class. The weights are drawn from an
exponential distribution (Rubin 1981), never 0: every resample holds every class, so the macro of each is the mean over
the same classes as the figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from cardialign.pretrain.evaluation.intervals import LEVEL, Sample, difference_interval, drawn_freedom, mean_interval

CHUNK_ELEMENTS = 4_000_000
"""Resamples are handled in chunks of about this many weights (32 MB of float64), whatever the number of records."""
MIN_PATIENTS = 5
"""Fewer patients with (or without) a finding give it no interval of its own: they hardly show how patients differ."""
FREQUENT = 10
"""Classes with fewer positives swing the macro mean; it is reported with and without them."""


def auroc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """AUROC of one class: the chance that a positive outranks a negative, ties counting one half.

    This is the Mann-Whitney statistic (Hanley and McNeil 1982).
    scores (n,) any real numbers, truth (n,) bool, weights (R, n) non-negative or None for one unweighted figure.
    Returns float64 (R,), or (1,) without weights; NaN where positives or negatives have no weight.
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


def class_auroc(scores: np.ndarray, truth: np.ndarray, decided: np.ndarray | None = None) -> np.ndarray:
    """AUROC of every class: scores (n, C), truth (n, C) bool -> float64 (C,).

    decided (n, C) bool: a class is scored over these records, None = all. NaN for a class without positives or without
    negatives among them.
    """
    chosen = [_rows_of(decided, c) for c in range(scores.shape[1])]
    return np.array([auroc(scores[rows, c], truth[rows, c])[0] for c, rows in enumerate(chosen)])


def patient_resamples(
    patients: Sequence[str] | np.ndarray, resamples: int, seed: int, among: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Bootstrap weights by patient: yields float64 (r, n) chunks, `resamples` rows in all.

    Row k is a pure function of (seed, k, patients): one positive weight per patient, of mean 1, for all its records.
    among: patients to draw weights for, these and more; evaluations of other records of the same are paired by it.
    """
    everybody, patient_of = np.unique(np.asarray(patients if among is None else among), return_inverse=True)
    count = len(everybody)
    if among is not None:
        patient_of = np.searchsorted(everybody, np.asarray(patients))
    rows = max(1, CHUNK_ELEMENTS // max(1, patient_of.size))
    for start in range(0, resamples, rows):
        chunk = np.empty((min(rows, resamples - start), patient_of.size))
        for k in range(chunk.shape[0]):
            chunk[k] = np.random.default_rng([seed, start + k]).standard_exponential(count)[patient_of]
        yield chunk


def bootstrap_auroc(
    scores: Sequence[np.ndarray],
    truth: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    among: np.ndarray | None = None,
    decided: np.ndarray | None = None,
) -> list[np.ndarray]:
    """AUROC of every class in every patient resample, for one or more score sets over the same resamples.

    scores: list of (n, C); truth (n, C) bool, every class with positives and negatives; patients (n,), drawn `among`
    more (`patient_resamples`); decided (n, C) bool, None = all: a class is scored over its decided records.
    Returns a list of float64 (R, C).
    """
    out = [np.full((resamples, truth.shape[1]), np.nan) for _ in scores]
    done = 0
    for weights in patient_resamples(patients, resamples, seed, among):
        for table, values in zip(out, scores, strict=True):
            for c in range(truth.shape[1]):
                rows = _rows_of(decided, c)
                table[done : done + len(weights), c] = auroc(values[rows, c], truth[rows, c], weights[:, rows])
        done += len(weights)
    return out


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval (`cardialign.pretrain.evaluation.intervals`), NaN where there is none."""

    value: float
    low: float
    high: float


def mean_over_records(values: np.ndarray, patients: np.ndarray, *, resamples: int, seed: int) -> Estimate:
    """Mean of values (n,) of records, resampled by patient; the spread is widened for the few patients there are.

    The interval is undefined (NaN) for fewer than `MIN_PATIENTS` or fewer than two resamples, everything without a
    record.
    """
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan)
    mean, k = float(np.mean(values)), len(np.unique(patients))
    if k < MIN_PATIENTS or resamples < 2:
        return Estimate(mean, math.nan, math.nan)
    drawn = np.concatenate([w @ values / w.sum(axis=1) for w in patient_resamples(patients, resamples, seed)])
    half = t_half_width(drawn, k)
    return Estimate(mean, mean - half, mean + half)


def t_half_width(drawn: np.ndarray, patients: int) -> float:
    """Half a 95 % interval of a figure that was resampled (R,) by so many patients: Student's t on their spread.

    Exponential weights show (k - 1) / (k + 1) of the variance that k patients have.
    """
    spread = float(np.std(drawn, ddof=1)) * math.sqrt((patients + 1) / (patients - 1))
    return float(student.ppf((1 + LEVEL) / 2, drawn_freedom(patients - 1, len(drawn)))) * spread


def _rows_of(decided: np.ndarray | None, column: int) -> np.ndarray | slice:
    return slice(None) if decided is None or decided[:, column].all() else decided[:, column]


def decided_at(
    decided: np.ndarray | None, rows: np.ndarray | slice = slice(None), columns: np.ndarray | slice = slice(None)
) -> np.ndarray | None:
    """These records and classes of decided (n, C) bool; None, which is all of them, stays None."""
    return None if decided is None else decided[rows][:, columns]


def usable_classes(truth: np.ndarray, decided: np.ndarray | None = None) -> tuple[np.ndarray, dict[int, str]]:
    """Columns of truth (n, C) that have both positives and negatives among the decided records (n, C), None = all; for
    every other column why AUROC is undefined."""
    reasons: dict[int, str] = {}
    for c in range(truth.shape[1]):
        column = truth[_rows_of(decided, c), c]
        if not column.any():
            reasons[c] = f"no positives among {len(column)} records"
        elif column.all():
            reasons[c] = f"no negatives among {len(column)} records"
    return np.array([c for c in range(truth.shape[1]) if c not in reasons], dtype=np.int64), reasons


@dataclass(frozen=True)
class ClassResult:
    """One class: positive records, patients who have them, AUROC and its 95 % interval.

    The interval is undefined (NaN) when too few patients have or lack the class (`MIN_PATIENTS`).
    """

    code: str
    name: str
    positives: int
    positive_patients: int
    auroc: float
    low: float
    high: float


@dataclass(frozen=True)
class MacroResult:
    """Mean AUROC over the `classes` classes that have at least `min_positives` positives."""

    value: float
    low: float
    high: float
    classes: int
    min_positives: int


@dataclass(frozen=True)
class ClassTable:
    """The figures of one encoder: per class, their mean, the mean of the frequent ones, and what they are made of."""

    classes: list[ClassResult]
    macro: Estimate
    frequent: MacroResult
    sample: Sample

    def less(self, other: ClassTable) -> tuple[Estimate, list[Estimate]]:
        """Macro and classes of this table less those of another one over the same records and resamples."""

        def difference(a: Sample, b: Sample, enough: bool = True) -> Estimate:
            limits = difference_interval(a, b) if enough else (math.nan, math.nan)
            return Estimate(float(a.point.mean() - b.point.mean()), *limits)

        columns = [np.array([c]) for c in range(len(self.classes))]
        enough = self.sample.fewest >= MIN_PATIENTS
        return difference(self.sample, other.sample), [
            difference(self.sample.only(c), other.sample.only(c), bool(enough[c].all())) for c in columns
        ]


def score_classes(
    scores: Sequence[np.ndarray],
    truth: np.ndarray,
    patients: np.ndarray,
    names: Sequence[tuple[str, str]],
    *,
    resamples: int,
    seed: int,
    among: np.ndarray | None = None,
    decided: np.ndarray | None = None,
) -> list[ClassTable]:
    """One table per score set, over the same resamples, drawn `among` these patients and more (`patient_resamples`).

    scores: list of (n, C), or (S, n, C) of S seeds, whose figure is the mean over the seeds, resampled together; truth
    (n, C) bool, every class with positives and negatives (`usable_classes`); patients (n,); names: code and name of
    each class; decided (n, C) bool: a class is scored over these records, None = all.
    """
    chosen = [_rows_of(decided, c) for c in range(truth.shape[1])]
    positives = np.array([truth[rows, c].sum() for c, rows in enumerate(chosen)])
    having = np.array([len(np.unique(patients[rows][truth[rows, c]])) for c, rows in enumerate(chosen)])
    lacking = np.array([len(np.unique(patients[rows][~truth[rows, c]])) for c, rows in enumerate(chosen)])
    seeds = [values[None] if values.ndim == 2 else values for values in scores]
    every = [each for of in seeds for each in of]
    drawn = iter(bootstrap_auroc(every, truth, patients, resamples=resamples, seed=seed, among=among, decided=decided))
    out = []
    for of in seeds:
        points = [[auroc(each[rows, c], truth[rows, c])[0] for c, rows in enumerate(chosen)] for each in of]
        sample = Sample(np.mean(points, axis=0), np.mean([next(drawn) for _ in of], axis=0), having, lacking)
        classes = [
            ClassResult(code, name, int(positives[c]), int(having[c]), float(sample.point[c]), *_limits(sample, c))
            for c, (code, name) in enumerate(names)
        ]
        macro = Estimate(float(sample.point.mean()), *mean_interval(sample))
        out.append(ClassTable(classes, macro, _frequent(sample, positives), sample))
    return out


def _limits(sample: Sample, column: int) -> tuple[float, float]:
    if sample.fewest[column] < MIN_PATIENTS:
        return math.nan, math.nan
    return mean_interval(sample.only(np.array([column])))


def _frequent(sample: Sample, positives: np.ndarray) -> MacroResult:
    chosen = np.flatnonzero(positives >= FREQUENT)
    if not chosen.size:
        return MacroResult(math.nan, math.nan, math.nan, 0, FREQUENT)
    frequent = sample.only(chosen)
    return MacroResult(float(frequent.point.mean()), *mean_interval(frequent), int(chosen.size), FREQUENT)
