"""How alike two reports are, from what the text bank holds: cosine of centred embeddings (whole or low-rank) and
overlap of statement sets.

Raw cosines of sentence embeddings sit on a large offset (any two reports of MIMIC-IV-ECG with MedCPT: 0.835 on
average), so the corpus mean is taken off first. R reports, width d, b reports of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

RANKS = (16, 32, 64, 128, 256)
"""Widths for which a bank states the error of its low-rank similarity."""
ERROR_PAIRS = 20_000


class CentredReports(Protocol):
    """What is needed to find the axes: the text bank, or a few vectors in a test."""

    embeddings: np.ndarray

    def centred(self, report_ids: np.ndarray) -> np.ndarray:
        """float32 (b, d) unit rows."""
        ...


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (b, d) at length 1.

    A report that equals the mean to fp16 precision has no direction: 0 rather than amplified rounding.
    """
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 1e-3)


def principal_axes(
    bank: CentredReports, report_ids: np.ndarray, dim: int, block: int = 65536
) -> tuple[np.ndarray, float]:
    """(d, dim) leading axes of the centred report embeddings and the share of their variance that these axes keep.

    In float64, with a fixed sign per axis, so that every process projects alike.
    """
    axes, variance = _all_axes(bank, report_ids, block)
    return axes[:, :dim], float(variance[:dim].sum() / max(variance.sum(), 1e-12))


def _all_axes(bank: CentredReports, report_ids: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    width = bank.embeddings.shape[1]
    covariance = np.zeros((width, width))
    for start in range(0, len(report_ids), block):
        rows = np.asarray(bank.centred(report_ids[start : start + block]), dtype=np.float64)
        covariance += rows.T @ rows
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, ::-1]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(width)])
    return (axes * signs).astype(np.float32), values[::-1].clip(min=0)


def low_rank_space(bank: CentredReports, seed: int = 0) -> tuple[np.ndarray, list[dict[str, float]]]:
    """All axes (d, d), strongest first, and for each width in RANKS below d what using only that many costs:

    {rank, variance_kept, mean_error, max_error, pairs}, the errors being |S - S_low_rank| over random pairs of
    different reports.
    """
    reports = len(bank.embeddings)
    axes, variance = _all_axes(bank, np.arange(reports), 65536)
    rng = np.random.default_rng(seed)
    first = rng.integers(reports, size=ERROR_PAIRS)
    second = (first + rng.integers(1, max(reports, 2), size=ERROR_PAIRS)) % reports
    errors = []
    for rank in (rank for rank in RANKS if rank < axes.shape[0]):
        error = np.concatenate(
            [
                np.abs(_paired(a, b) - _paired(low_rank(a, axes[:, :rank]), low_rank(b, axes[:, :rank])))
                for a, b in _pairs(bank, first, second)
            ]
        )
        kept = float(variance[:rank].sum() / max(variance.sum(), 1e-12))
        errors.append(
            {
                "rank": rank,
                "variance_kept": round(kept, 6),
                "mean_error": round(float(error.mean()), 6),
                "max_error": round(float(error.max()), 6),
                "pairs": int(error.size),
            }
        )
    return axes, errors


def _pairs(
    bank: CentredReports, first: np.ndarray, second: np.ndarray, block: int = 4096
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for at in range(0, first.size, block):
        yield bank.centred(first[at : at + block]), bank.centred(second[at : at + block])


def _paired(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", a, b)


def low_rank(centred: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Centred unit rows (b, d) on axes (d, r) -> float32 (b, r) unit rows, whose products approximate the cosines."""
    return unit(centred @ axes)


def jaccard(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """float32 (m, n): |A and B| / |A or B| of two lists of statement sets in CSR form (indptr, ids); exact; 0 for two
    empty sets."""
    from scipy import sparse  # here, because a run without statement sets does not need it

    columns = 1 + max(int(first[1].max(initial=0)), int(second[1].max(initial=0)))
    rows, others = (
        sparse.csr_matrix((np.ones(len(ids), dtype=np.int32), ids, indptr), shape=(len(indptr) - 1, columns))
        for indptr, ids in (first, second)
    )
    shared = (rows @ others.T).toarray()
    union = np.diff(first[0])[:, None] + np.diff(second[0])[None, :] - shared
    return (shared / np.maximum(union, 1)).astype(np.float32)
