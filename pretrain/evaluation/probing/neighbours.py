"""k nearest neighbours: what lies near a record in the encoder's space, without a single weight fitted.

Legend: n records that are known, m that are asked about, C classes.
"""

from __future__ import annotations

import numpy as np

BLOCK_ELEMENTS = 20_000_000
"""Cosines are taken in blocks of rows of about this many (160 MB of float64)."""


def neighbour_scores(known: np.ndarray, truth: np.ndarray, asked: np.ndarray, k: int) -> np.ndarray:
    """Share of the k nearest that have each class, nearer ones counting more: float64 (m, C) in [0, 1].

    known (n, F), asked (m, F): any vectors; nearness is their cosine, its positive part is the weight (all equal where
    none is positive). truth bool (n, C). k is cut to n. Raises ValueError for k below 1 or no known record.
    """
    if k < 1 or not len(known):
        raise ValueError(f"k is {k} and {len(known)} records are known; both must be at least 1")
    k = min(k, len(known))
    base, queries = _unit(known), _unit(asked)
    votes = truth.astype(np.float64)
    out = np.empty((len(asked), truth.shape[1]))
    block = max(1, BLOCK_ELEMENTS // len(known))
    for start in range(0, len(asked), block):
        cosines = queries[start : start + block] @ base.T
        nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        weights = np.take_along_axis(cosines, nearest, axis=1).clip(0.0)
        weights[weights.sum(axis=1) == 0] = 1.0
        weights /= weights.sum(axis=1, keepdims=True)
        out[start : start + block] = np.einsum("mk,mkc->mc", weights, votes[nearest])
    return out


def _unit(rows: np.ndarray) -> np.ndarray:
    exact = rows.astype(np.float64)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True).clip(1e-12)
