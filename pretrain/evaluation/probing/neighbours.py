"""k nearest neighbours: what lies near a record in the encoder's space, without a single weight fitted.

Legend: n records that are known, m that are asked about, C classes.
"""

from __future__ import annotations

import numpy as np

BLOCK_ELEMENTS = 20_000_000
"""Cosines are taken in blocks of rows of about this many (160 MB of float64)."""


def neighbour_scores(
    known: np.ndarray, truth: np.ndarray, asked: np.ndarray, k: int, decided: np.ndarray | None = None
) -> np.ndarray:
    """Share of the k nearest that have each class, nearer ones counting more: float64 (m, C) in [0, 1].

    known (n, F), asked (m, F): any vectors; nearness is their cosine, its positive part is the weight (all equal where
    none is positive). truth bool (n, C). decided bool (n, C): the neighbours of a class are among these, None = all. k
    is cut to their number. Raises ValueError for k below 1 or no known record.
    """
    if k < 1 or not len(known):
        raise ValueError(f"k is {k} and {len(known)} records are known; both must be at least 1")
    base, queries = _unit(known), _unit(asked)
    votes = truth.astype(np.float64)
    alike = _alike(decided, truth)
    out = np.empty((len(asked), truth.shape[1]))
    block = max(1, BLOCK_ELEMENTS // len(known))
    for start in range(0, len(asked), block):
        cosines = queries[start : start + block] @ base.T
        for columns, rows in alike:
            near = cosines if rows.all() else cosines[:, rows]
            out[start : start + block, columns] = _votes(near, votes[rows][:, columns], k)
    return out


def _alike(decided: np.ndarray | None, truth: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Classes that are decided for the same records, and these: places (c,), bool (n,)."""
    if decided is None:
        return [(np.arange(truth.shape[1]), np.ones(len(truth), dtype=bool))]
    patterns, group = np.unique(decided, axis=1, return_inverse=True)
    return [(np.flatnonzero(group.ravel() == place), patterns[:, place]) for place in range(patterns.shape[1])]


def _votes(cosines: np.ndarray, votes: np.ndarray, k: int) -> np.ndarray:
    """cosines (m, n), votes (n, c) -> (m, c)."""
    k = min(k, len(votes))
    nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
    weights = np.take_along_axis(cosines, nearest, axis=1).clip(0.0)
    weights[weights.sum(axis=1) == 0] = 1.0
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("mk,mkc->mc", weights, votes[nearest])


def _unit(rows: np.ndarray) -> np.ndarray:
    exact = rows.astype(np.float64)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True).clip(1e-12)
