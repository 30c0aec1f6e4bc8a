"""k nearest neighbours: what scikit-learn's finds, and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from cardialign.pretrain.evaluation.probing import neighbours
from cardialign.pretrain.evaluation.probing.neighbours import neighbour_scores


@pytest.mark.parametrize("k", [1, 5, 40])
def test_scores_are_the_weighted_votes_of_scikit_learns_neighbours(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK_ELEMENTS", 100)  # several blocks
    draw = np.random.default_rng(0)
    known, asked, truth = draw.normal(size=(40, 6)) + 0.5, draw.normal(size=(17, 6)) + 0.5, draw.random((40, 3)) < 0.4
    distance, places = NearestNeighbors(n_neighbors=k, metric="cosine").fit(known).kneighbors(asked)
    weights = np.clip(1 - distance, 0, None)
    weights[weights.sum(axis=1) == 0] = 1.0
    expected = [np.average(truth[p], axis=0, weights=w) for p, w in zip(places, weights, strict=True)]
    np.testing.assert_allclose(neighbour_scores(known, truth, asked, k), expected, atol=1e-12)


def test_the_length_of_a_vector_says_nothing_and_more_than_all_neighbours_are_all() -> None:
    known = np.array([[1.0, 0.0], [0.0, 5.0]])
    truth = np.array([[True], [False]])
    assert neighbour_scores(known, truth, np.array([[100.0, 1.0]]), 1)[0, 0] == 1.0
    assert 0 < neighbour_scores(known, truth, np.array([[1.0, 1.0]]), 9)[0, 0] < 1
    assert neighbour_scores(known, truth, np.array([[-1.0, -1.0]]), 2)[0, 0] == 0.5, "none is near: all count alike"


@pytest.mark.parametrize(("k", "n"), [(0, 3), (1, 0)])
def test_nobody_to_ask_is_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        neighbour_scores(np.ones((n, 2)), np.ones((n, 1), dtype=bool), np.ones((1, 2)), k)
