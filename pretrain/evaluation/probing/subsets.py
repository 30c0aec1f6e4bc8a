"""Which part of the training records a probe may learn from: 1 %, 10 %, all of them.

Legend: n training records, C classes.
"""

from __future__ import annotations

import math

import numpy as np

STYLES = ("random", "stratified", "published-42")


def subset(truth: np.ndarray, share: float, style: str, seed: int) -> np.ndarray:
    """Ascending places int64 (m,) of a part of n records with truth bool (n, C); share in (0, 1].

    random        m = floor(share x n) records, every choice equally likely.
    stratified    each class keeps its share of positives, rounded, at least one: the rarest class chooses first, what
                  is left over is filled at random.
    published-42  the one choice of MERL's scripts and those after them: scikit-learn's `train_test_split` with
                  random_state 42, in the order of the published file. The seed says nothing.
    At least one record. Raises ValueError for another style or share.
    """
    n = len(truth)
    if not 0 < share <= 1:
        raise ValueError(f"share is {share:g}; give a number above 0 and up to 1")
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; known: {', '.join(STYLES)}")
    exact = share * n
    if style != "published-42" and abs(exact - round(exact)) < 1e-9 * n:
        exact = round(exact)  # 29 % of 100 are 29, and 28.999999999999996 in floating point
    size = max(1, math.floor(exact))
    if size == n:
        return np.arange(n)
    if style == "published-42":
        return np.sort(np.random.RandomState(42).permutation(n)[n - size :])
    draw = np.random.default_rng([seed, n, size])
    order = draw.permutation(n)
    return np.sort(order[:size] if style == "random" else _stratified(truth, share, size, order))


def _stratified(truth: np.ndarray, share: float, size: int, order: np.ndarray) -> np.ndarray:
    wanted = np.where(truth.any(axis=0), np.maximum(1, np.rint(share * truth.sum(axis=0))), 0).astype(np.int64)
    chosen = np.zeros(len(truth), dtype=bool)
    for c in np.argsort(truth.sum(axis=0), kind="stable"):
        lacking = int(wanted[c] - truth[chosen, c].sum())
        if lacking > 0:
            free = order[truth[order, c] & ~chosen[order]]
            chosen[free[:lacking]] = True
    rest = order[~chosen[order]]
    chosen[rest[: max(0, size - int(chosen.sum()))]] = True
    return np.flatnonzero(chosen)
