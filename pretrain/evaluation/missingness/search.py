"""The worst that can be missing for an encoder, found by trying: occlusion on its own score.

Every unit is left out alone, beside what is gone already; those whose loss lowers Delta of the record most go, too, an
equal number in each round. One round is plain occlusion; as many as the budget, the greedy search. The search knows the
record's labels, as an adversary would. It is no bound: a worse mask may exist.
Legend: R candidates, U units, T samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cardialign.pretrain.evaluation.missingness.masks import Units, highest

Scorer = Callable[[np.ndarray], np.ndarray]
"""missing bool (R, 12, T) of one record -> Delta float64 (R,)."""


def worst_units(units: Units, budget: int, score: Scorer, rounds: int = 1) -> np.ndarray:
    """bool (U,) with `budget` True."""
    gone = np.zeros(len(units), dtype=bool)
    for goal in np.ceil(np.linspace(0, budget, min(rounds, budget) + 1)[1:]).astype(int):
        left = np.flatnonzero(~gone)
        tried = np.repeat(gone[None], len(left), axis=0)
        tried[np.arange(len(left)), left] = True
        harm = -score(units.mask(tried))
        gone[left[highest(harm, int(goal) - int(gone.sum()))]] = True
    return gone
