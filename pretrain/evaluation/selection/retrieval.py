"""Retrieval on held-out pairs: does an ECG find its report among those of others, and a report its ECGs?

A report that is word for word the same is the same report: it stands once among the candidates, and each of its ECGs is
a hit. Equal cosines are broken by chance, in expectation: an encoder that tells nothing apart scores what chance does.
Legend: n ECGs, M distinct reports, k ranks that count, q questions, g candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RANKS = (1, 5, 10)
DECIMALS = 6
"""Cosines that float32 cannot tell apart are equal."""
BLOCK_ELEMENTS = 20_000_000


@dataclass(frozen=True)
class Retrieval:
    """Shares in 0..1 by k: of the n ECGs that find their report, of the M reports that find one of theirs, and what
    chance gives. mean: of all of the first two, the criterion."""

    pairs: int
    reports: int
    ecg_to_report: dict[int, float]
    report_to_ecg: dict[int, float]
    chance_ecg_to_report: dict[int, float]
    chance_report_to_ecg: dict[int, float]

    @property
    def mean(self) -> float:
        return float(np.mean([*self.ecg_to_report.values(), *self.report_to_ecg.values()]))


def retrieve(ecg: np.ndarray, text: np.ndarray, report_of: np.ndarray) -> Retrieval:
    """ecg (n, E) and text (M, E) unit rows, report_of int (n,): which of the M each ECG has; every report has one."""
    reports = np.arange(len(text))
    forth = _recall(ecg, text, report_of, reports)
    back = _recall(text, ecg, reports, report_of)
    owned = np.bincount(report_of, minlength=len(text))
    chance_forth = {k: min(k / len(text), 1.0) for k in RANKS}
    alike = np.zeros(len(text), dtype=np.int64)
    chance_back = {k: float(_chance(alike, np.full(len(text), len(ecg)), owned, k).mean()) for k in RANKS}
    return Retrieval(len(ecg), len(text), forth, back, chance_forth, chance_back)


def _recall(asking: np.ndarray, answering: np.ndarray, wanted: np.ndarray, of: np.ndarray) -> dict[int, float]:
    """Question i wants any candidate j with of[j] == wanted[i]."""
    totals = dict.fromkeys(RANKS, 0.0)
    block = max(1, BLOCK_ELEMENTS // max(1, len(answering)))
    for start in range(0, len(asking), block):
        cosines = np.round(asking[start : start + block].astype(np.float64) @ answering.T.astype(np.float64), DECIMALS)
        right = wanted[start : start + block, None] == of[None, :]
        best = np.where(right, cosines, -np.inf).max(axis=1, keepdims=True)
        above, level = (cosines > best).sum(axis=1), cosines == best
        for k in RANKS:
            totals[k] += float(_chance(above, level.sum(axis=1), (level & right).sum(axis=1), k).sum())
    return {k: total / len(asking) for k, total in totals.items()}


def _chance(above: np.ndarray, tied: np.ndarray, hits: np.ndarray, k: int) -> np.ndarray:
    """Chance that one of `hits` among `tied` candidates, in any order behind `above` others, is among the first k."""
    free = np.clip(k - above, 0, tied)
    missed = np.ones(len(above))
    for taken in range(k):
        left = np.maximum(tied - taken, 1)
        missed = np.where(taken < free, missed * np.maximum(tied - hits - taken, 0) / left, missed)
    return 1.0 - missed
