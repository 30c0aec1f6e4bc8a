"""CMRS-R: how much of what a record says of its classes is left when parts of it are missing.

With s the cosine of record and class, Y the classes that the record has, and a record of which everything is missing:

    Delta(x) = mean_{c in Y} s(x, c) - mean_{c not in Y} s(x, c),    Delta_0 = the same of the blank record
    CMRS(m)  = mean_i clip( (Delta_i(x, m) - Delta_0) / (Delta_i(x) - Delta_0), 0, 1 )

over the records whose whole says more than nothing: Delta_i(x) > Delta_0 + 0.01. Their share is the coverage. 1: all is
preserved; 0: no more is left than of no record at all. A reconstruction: the publication's own equation (SCAR, Liu et
al. 2026) is not public to us. Legend: n records, C classes.

Masks made for each record can betray what they hide: an encoder that was trained with such masks may read a finding
from the leads that are missing. AUROC with the same leads missing of every record cannot be had that way.
"""

from __future__ import annotations

import numpy as np

MARGIN = 0.01


def separation(scores: np.ndarray, truth: np.ndarray, decided: np.ndarray | None = None) -> np.ndarray:
    """Delta float64 (..., n) of scores (..., n, C) and truth bool (n, C).

    decided bool (n, C): classes that a record leaves open count on neither side. NaN for a record that has no class, or
    lacks none.
    """
    known = np.ones_like(truth) if decided is None else decided
    with np.errstate(invalid="ignore", divide="ignore"):
        has, lacks = (
            np.where(which, scores, 0.0).sum(axis=-1, dtype=np.float64) / which.sum(axis=-1)
            for which in (truth & known, ~truth & known)
        )
        return np.asarray(has - lacks)


def covered(whole: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """bool (n,): the records over which CMRS is a mean."""
    with np.errstate(invalid="ignore"):
        return np.asarray(whole > blank + MARGIN)


def preserved(masked: np.ndarray, whole: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """What each record keeps, 0..1, float64 (..., n); NaN where it is not covered. masked (..., n), the others (n,)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.clip((masked - blank) / (whole - blank), 0.0, 1.0)
    return np.where(covered(whole, blank), share, np.nan)
