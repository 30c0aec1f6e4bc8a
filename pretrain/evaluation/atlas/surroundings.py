"""Who lies near a record in an encoder's space: figures beside a map, which shows the same and can mislead.

Neighbours are of other patients: that two ECGs of one person are alike is no merit.
Legend: n records, C classes, k neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cardialign.pretrain.evaluation.scoring import Estimate, mean_over_records

NEIGHBOURS = 10
BLOCK_ELEMENTS = 20_000_000
"""Cosines are taken in blocks of rows of about this many (160 MB of float64)."""


@dataclass(frozen=True)
class Labelled:
    """truth bool (n, C) and labelled bool (n,), False where a record has no label of the set; ages in years (n,), NaN
    where unknown; patients (n,); names: code and words of each class."""

    truth: np.ndarray
    labelled: np.ndarray
    ages: np.ndarray
    patients: np.ndarray
    names: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Surroundings:
    """k: neighbours that were looked at, by cosine, of other patients.

    sharing (n,): share of a record's labelled neighbours that have one of its classes, NaN of a record without a class
    or without such neighbours; chance (n,): the same of all records of other patients. classes (C, 2): of the records
    that have a class, the mean share of neighbours that have it, and that by chance; NaN of a class that none has.
    years (n,), years_chance (n,): mean difference of age to the neighbours, and to all, NaN where not known.
    """

    k: int
    sharing: np.ndarray
    chance: np.ndarray
    classes: np.ndarray
    years: np.ndarray
    years_chance: np.ndarray


def surroundings(embedding: np.ndarray, about: Labelled, k: int = NEIGHBOURS) -> Surroundings:
    """Of each record of embedding (n, e), unit rows, its k nearest of other patients; fewer where there are no more."""
    n, classes = about.truth.shape
    unit = np.asarray(embedding, dtype=np.float64)
    sharing, chance, years, years_chance = (np.full(n, np.nan) for _ in range(4))
    sums = np.zeros((classes, 2))
    block = max(1, BLOCK_ELEMENTS // n)
    for start in range(0, n, block):
        part = np.arange(start, min(start + block, n))
        strangers = about.patients[part][:, None] != about.patients[None, :]
        near = _nearest(np.where(strangers, unit[part] @ unit.T, -np.inf), strangers, k)
        for mask, shares, ages in ((near, sharing, years), (strangers, chance, years_chance)):
            shares[part] = _shared(about, part, mask)
            ages[part] = _years(about.ages, part, mask)
        sums += _of_classes(about, part, near, strangers)
    held = (about.truth & about.labelled[:, None]).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        per_class = np.where(held[:, None] > 0, sums / held[:, None], np.nan)
    return Surroundings(k, sharing, chance, per_class, years, years_chance)


def _nearest(cosines: np.ndarray, strangers: np.ndarray, k: int) -> np.ndarray:
    """bool as cosines (m, n): the k largest of each row, among strangers."""
    k = min(k, cosines.shape[1])
    near = np.zeros(cosines.shape, dtype=bool)
    np.put_along_axis(near, np.argpartition(-cosines, k - 1, axis=1)[:, :k], True, axis=1)
    both: np.ndarray = near & strangers
    return both


def _shared(about: Labelled, part: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Share of the labelled records of mask (m, n) that have a class of each record of part (m,)."""
    labelled = mask & about.labelled
    common = (about.truth[part].astype(np.float32) @ about.truth.T.astype(np.float32)) > 0
    some = about.truth[part].any(axis=1) & about.labelled[part]
    return _ratio((labelled & common).sum(axis=1), np.where(some, labelled.sum(axis=1), 0))


def _of_classes(about: Labelled, part: np.ndarray, near: np.ndarray, strangers: np.ndarray) -> np.ndarray:
    """(C, 2): per class, summed over its records in part, the share of their neighbours, and of strangers, with it."""
    truth = about.truth[part] & about.labelled[part][:, None]
    columns = []
    for mask in (near, strangers):
        labelled = (mask & about.labelled).astype(np.float32)
        shares = (labelled @ about.truth.astype(np.float32)) / labelled.sum(axis=1, keepdims=True).clip(1)
        columns.append((shares * truth).sum(axis=0))
    return np.stack(columns, axis=1)


def _years(ages: np.ndarray, part: np.ndarray, mask: np.ndarray) -> np.ndarray:
    apart = np.abs(ages[part][:, None] - ages[None, :])
    known = mask & np.isfinite(apart)
    return _ratio(np.where(known, apart, 0).sum(axis=1), known.sum(axis=1))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)


def mean_of(values: np.ndarray, patients: np.ndarray, seed: int, resamples: int = 1000) -> Estimate:
    """Mean of the values (n,) that are known, with its interval by patient (`scoring.mean_over_records`)."""
    known = np.isfinite(values)
    if not known.any():
        return Estimate(math.nan, math.nan, math.nan)
    return mean_over_records(values[known], patients[known], resamples=resamples, seed=seed)
