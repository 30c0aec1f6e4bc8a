"""Low-rank similarity: exact when the space has that rank, its error stated as measured; Jaccard exact."""

from __future__ import annotations

import numpy as np
import pytest

from cardialign.data_shards.text.similarity import ERROR_PAIRS, jaccard, low_rank, low_rank_space, principal_axes, unit


class Vectors:
    """Unit rows that stand for centred embeddings: `rank` strong directions and a little of all others."""

    def __init__(self, reports: int, width: int, rank: int, noise: float) -> None:
        rng = np.random.default_rng(0)
        rows = rng.normal(size=(reports, rank)) @ rng.normal(size=(rank, width)) + noise * rng.normal(
            size=(reports, width)
        )
        self.embeddings = unit(rows.astype(np.float32))

    def centred(self, report_ids: np.ndarray) -> np.ndarray:
        return self.embeddings[report_ids]


def test_a_space_of_low_rank_loses_nothing() -> None:
    bank = Vectors(50, 40, rank=5, noise=0)
    axes, kept = principal_axes(bank, np.arange(50), 5, block=7)
    assert axes.shape == (40, 5) and kept == pytest.approx(1)
    rows = bank.centred(np.arange(50))
    low = low_rank(rows, axes)
    np.testing.assert_allclose(low @ low.T, rows @ rows.T, atol=1e-5)


def test_the_stated_errors_are_those_of_random_pairs_and_fall_with_the_rank() -> None:
    bank = Vectors(200, 80, rank=20, noise=0.3)
    axes, errors = low_rank_space(bank)
    assert [each["rank"] for each in errors] == [16, 32, 64] and all(each["pairs"] == ERROR_PAIRS for each in errors)
    assert errors[0]["max_error"] > errors[1]["max_error"] > errors[2]["max_error"] > errors[2]["mean_error"] > 0
    rows = bank.centred(np.arange(200))
    for each in errors:
        low = low_rank(rows, axes[:, : each["rank"]])
        error = np.abs(low @ low.T - rows @ rows.T)[~np.eye(200, dtype=bool)]
        assert each["mean_error"] == pytest.approx(error.mean(), rel=0.05)
        assert 0.7 * error.max() < each["max_error"] <= error.max() + 1e-6


def test_axes_are_orthonormal_and_the_prefix_of_more_axes() -> None:
    bank = Vectors(60, 24, rank=24, noise=0)
    few, _ = principal_axes(bank, np.arange(60), 6)
    many, kept = principal_axes(bank, np.arange(60), 24)
    np.testing.assert_array_equal(few, many[:, :6])
    np.testing.assert_allclose(many.T @ many, np.eye(24), atol=1e-5)
    assert kept == pytest.approx(1)


def test_empty_statement_sets_overlap_with_nothing() -> None:
    sets = np.array([0, 0, 2, 3]), np.array([4, 9, 4])
    np.testing.assert_array_equal(
        jaccard(sets, sets), np.array([[0, 0, 0], [0, 1, 0.5], [0, 0.5, 1]], dtype=np.float32)
    )
