"""Scores with a known amount of truth in them, as an evaluation leaves them."""

from __future__ import annotations

import numpy as np

from cardialign.pretrain.evaluation.scored import ScoredRecords

NAMES = (("MI", "Infarction"), ("CD", "Conduction"))


def scored_records(
    signal: float, seed: int = 1, truth: np.ndarray | None = None, records: str = "r" * 64
) -> ScoredRecords:
    """200 records of 100 patients, two classes. A positive scores `signal` standard deviations higher."""
    if truth is None:
        truth = np.random.default_rng(0).random((200, 2)) < 0.35
    noise = np.random.default_rng(seed).normal(size=(200, 2))
    return ScoredRecords((noise + signal * truth)[None], truth, np.arange(200) // 2, NAMES, records=records)
