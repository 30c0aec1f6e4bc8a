"""Recall on pairs by hand: duplicate reports are hits, ties are broken in expectation, chance is what chance gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cardialign.pretrain.evaluation.selection.effective_rank import effective_rank
from cardialign.pretrain.evaluation.selection.retrieval import RANKS, retrieve


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute(ecg: np.ndarray, text: np.ndarray, report_of: np.ndarray, draws: int, seed: int) -> dict[int, list[float]]:
    """Recall by sorting with ties broken at random, many times."""
    draw = np.random.default_rng(seed)
    cosines = np.round(ecg @ text.T, 6)
    found: dict[int, list[float]] = {k: [0.0, 0.0] for k in RANKS}
    for _ in range(draws):
        for side, (table, right) in enumerate(
            [
                (cosines, report_of[:, None] == np.arange(len(text))[None]),
                (cosines.T, np.arange(len(text))[:, None] == report_of[None]),
            ]
        ):
            order = np.lexsort((draw.random(table.shape), -table), axis=1)
            hit = np.take_along_axis(right, order, axis=1)
            for k in RANKS:
                found[k][side] += hit[:, :k].any(axis=1).mean() / draws
    return found


def test_a_report_that_is_word_for_word_the_same_is_a_hit_for_each_of_its_ecgs() -> None:
    text = np.eye(3)
    report_of = np.array([0, 0, 1, 2])
    ecg = text[report_of]
    found = retrieve(ecg, text, report_of)
    assert found.ecg_to_report[1] == 1.0 and found.report_to_ecg[1] == 1.0 and found.mean == 1.0
    assert (found.pairs, found.reports) == (4, 3)
    wrong = retrieve(text[[1, 0, 1, 2]], text, report_of)
    assert wrong.ecg_to_report[1] == pytest.approx(3 / 4), "one ECG lies with another report"
    # report 0 finds its second ECG, report 1 finds two at the top of which one is its own, report 2 finds its own
    assert wrong.report_to_ecg[1] == pytest.approx((1 + 1 / 2 + 1) / 3)


def test_a_collapsed_encoder_scores_exactly_what_chance_does() -> None:
    report_of = np.array([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
    ecg, text = np.ones((15, 4)) / 2, np.ones((13, 4)) / 2
    found = retrieve(ecg, text, report_of)
    for k in RANKS:
        assert found.ecg_to_report[k] == pytest.approx(found.chance_ecg_to_report[k], abs=1e-12)
        assert found.report_to_ecg[k] == pytest.approx(found.chance_report_to_ecg[k], abs=1e-12)
    assert found.chance_ecg_to_report[5] == pytest.approx(5 / 13)
    three, one = 1 - math.comb(12, 5) / math.comb(15, 5), 5 / 15
    assert found.chance_report_to_ecg[5] == pytest.approx((three + 12 * one) / 13)


def test_recall_is_that_of_sorting_with_ties_in_random_order() -> None:
    draw = np.random.default_rng(0)
    text = unit(draw.integers(-1, 2, size=(12, 3)) + 1e-9)
    report_of = np.concatenate([np.arange(12), draw.integers(12, size=18)])
    ecg = unit(draw.integers(-1, 2, size=(30, 3)) + 1e-9)
    found = retrieve(ecg, text, report_of)
    expected = brute(ecg, text, report_of, 4000, 1)
    for k in RANKS:
        assert found.ecg_to_report[k] == pytest.approx(expected[k][0], abs=0.01)
        assert found.report_to_ecg[k] == pytest.approx(expected[k][1], abs=0.01)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(3)
    ecg, text, report_of = unit(draw.normal(size=(20, 5))), unit(draw.normal(size=(9, 5))), np.arange(20) % 9
    whole = retrieve(ecg, text, report_of)
    monkeypatch.setattr("cardialign.pretrain.evaluation.selection.retrieval.BLOCK_ELEMENTS", 20)
    assert retrieve(ecg, text, report_of) == whole


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], 4.0),
        ([3.0, 1.0], math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))),
        ([5.0, 0.0, 0.0], 1.0),
    ],
)
def test_effective_rank_of_a_matrix_with_known_singular_values(sizes: list[float], expected: float) -> None:
    draw = np.random.default_rng(0)
    left = np.linalg.qr(draw.normal(size=(9, len(sizes))))[0]
    right = np.linalg.qr(draw.normal(size=(len(sizes), len(sizes))))[0]
    matrix = left @ np.diag(sizes) @ right
    assert effective_rank(matrix) == pytest.approx(expected, rel=1e-6)
    assert effective_rank(7 * matrix) == pytest.approx(expected, rel=1e-6), "scale says nothing"


def test_what_has_no_rank_is_told() -> None:
    with pytest.raises(ValueError, match="all zero, or not finite"):
        effective_rank(np.zeros((4, 2)))
