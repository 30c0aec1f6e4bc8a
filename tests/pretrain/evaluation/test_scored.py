"""Two encoders on the same records: who is better by how much, told by scores alone, and by nobody's name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.scored import ScoredRecords, paired, records_digest
from tests.support.scored_records import scored_records


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """By counting pairs."""
    up, down = scores[positive][:, None], scores[~positive][None]
    return float((up > down).mean() + 0.5 * (up == down).mean())


def macro(scored: ScoredRecords, rows: np.ndarray) -> float:
    scores, truth = scored.scores[0][rows], scored.truth[rows]
    return float(np.mean([auroc(scores[:, c], truth[:, c]) for c in range(truth.shape[1])]))


def test_the_paired_figure_is_that_of_a_bootstrap_of_patients_by_hand() -> None:
    better, worse = scored_records(signal=1.5), scored_records(signal=1.1)
    found = paired(better, worse)
    everything = np.arange(len(better.truth))
    expected = macro(better, everything) - macro(worse, everything)
    assert found.difference.value == pytest.approx(expected, abs=1e-9)
    assert found.mine == pytest.approx(macro(better, everything)) and found.patients == 100
    rng, of_patient = np.random.default_rng(7), [np.flatnonzero(better.patients == p) for p in range(100)]
    drawn = []
    for _ in range(400):
        rows = np.concatenate([of_patient[p] for p in rng.integers(0, 100, 100)])
        drawn.append(macro(better, rows) - macro(worse, rows))
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found.difference.low == pytest.approx(low, abs=0.015)
    assert found.difference.high == pytest.approx(high, abs=0.015)
    back = paired(worse, better).difference
    assert (back.value, back.low, back.high) == pytest.approx(
        (-found.difference.value, -found.difference.high, -found.difference.low)
    )


def test_an_encoder_does_not_differ_from_itself_and_pairing_narrows_the_interval() -> None:
    one = scored_records(signal=1.2)
    same = paired(one, one).difference
    assert (same.value, same.low, same.high) == (0, 0, 0)
    noise = np.random.default_rng(3).normal(0, 0.1, one.scores.shape)
    close = paired(one, replace(one, scores=one.scores + noise)).difference
    unlike = paired(one, scored_records(signal=1.2, seed=9, truth=one.truth)).difference
    assert close.high - close.low < 0.5 * (unlike.high - unlike.low)


def test_scores_of_other_records_or_of_other_labels_are_not_compared() -> None:
    one = scored_records(signal=1.0)
    other = one.truth.copy()
    other[0, 0] = not other[0, 0]
    left_open = np.ones_like(one.truth)
    left_open[0, 0] = False
    for changed in (
        replace(one, records="another"),
        replace(one, truth=other),
        replace(one, patients=one.patients[::-1].copy()),
        replace(one, names=(("X", "X"), *one.names[1:])),
        replace(one, decided=left_open),
    ):
        with pytest.raises(ValueError, match=r"same|left open"):
            paired(one, changed)


def test_records_are_known_by_all_their_keys_together_and_patients_by_number(shards: ShardSet) -> None:
    rows = np.array([5, 3, 40, 77, 8])
    scores = rows[None, :, None] * np.array([1.0, 10.0])
    truth = np.stack([rows > 10, rows > 4], axis=1)
    given = ScoredRecords(scores, truth, shards.patients[rows], (("A", "a"), ("B", "b")), rows=rows)
    order = [4, 2, 0, 1, 3]
    shuffled = replace(
        given, scores=scores[:, order], truth=truth[order], patients=given.patients[order], rows=rows[order]
    )
    one, two = given.nameless(shards), shuffled.nameless(shards)
    for name in ("scores", "truth", "patients"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.records == two.records == records_digest(shards, rows) and one.rows is None
    assert one.records != records_digest(shards, rows[:4])
    assert one.patients.tolist() == list(np.unique(one.patients, return_inverse=True)[1]), "numbers from 0 on"
    assert one.patients[0] == 0 and one.patients.dtype == np.int64
    by_row = {int(score): tuple(labels) for score, labels in zip(one.scores[0, :, 0], one.truth, strict=True)}
    assert by_row == {int(row): tuple(labels) for row, labels in zip(rows, truth, strict=True)}
