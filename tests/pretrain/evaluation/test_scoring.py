"""AUROC is what counting pairs by hand gives, with ties, with weights, per resample.

Intervals know that patients repeat.
"""

from __future__ import annotations

import numpy as np
import pytest

from cardialign.pretrain.evaluation.scoring import (
    auroc,
    bootstrap_auroc,
    class_auroc,
    patient_resamples,
    score_classes,
    usable_classes,
)


def count_pairs(scores, truth, weights):
    won = total = 0.0
    for i in np.flatnonzero(truth):
        for j in np.flatnonzero(~truth):
            pair = weights[i] * weights[j]
            total += pair
            won += pair * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return won / total if total else float("nan")


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_weighted_auroc_equals_a_count_of_pairs_with_ties(levels):
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, 60).astype(float)
    truth = rng.random(60) < 0.3
    weights = rng.integers(0, 4, (7, 60)).astype(float)
    expected = [count_pairs(scores, truth, row) for row in weights]
    np.testing.assert_allclose(auroc(scores, truth, weights), expected, rtol=1e-12)
    np.testing.assert_allclose(auroc(scores, truth)[0], count_pairs(scores, truth, np.ones(60)), rtol=1e-12)


def test_perfect_reversed_and_constant_scores_give_one_zero_and_a_half():
    truth = np.array([0, 0, 1, 1], dtype=bool)
    assert auroc(np.array([1.0, 2, 3, 4]), truth)[0] == 1.0
    assert auroc(np.array([4.0, 3, 2, 1]), truth)[0] == 0.0
    assert auroc(np.zeros(4), truth)[0] == 0.5


def test_agrees_with_scikit_learn_where_it_is_installed():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    scores, truth = rng.normal(size=(300, 4)).round(1), rng.random((300, 4)) < 0.2
    expected = sklearn_metrics.roc_auc_score(truth, scores, average=None)
    np.testing.assert_allclose(class_auroc(scores, truth), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_scikit_learn_to_twelve_digits_with_ties_weights_and_classes_of_one(seed):
    roc_auc_score = pytest.importorskip("sklearn.metrics").roc_auc_score
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 400))
    scores = rng.normal(size=(n, 6)) * 10.0 ** rng.integers(-8, 8)
    scores[:, 1] = rng.integers(0, 3, n)  # next to nothing but ties
    scores[:, 2] = np.float32(scores[:, 2])
    truth = rng.random((n, 6)) < [0.5, 0.3, 0.2, 0.05, 0, 0]
    truth[rng.integers(n), 4] = True  # one positive
    truth[:, 5] = np.arange(n) != rng.integers(n)  # one negative
    truth[0], truth[1] = True, False
    np.testing.assert_allclose(
        class_auroc(scores, truth), roc_auc_score(truth, scores, average=None), rtol=0, atol=1e-12
    )
    assert class_auroc(scores, truth).mean() == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    weights = rng.standard_exponential(n)
    for c in range(6):
        expected = roc_auc_score(truth[:, c], scores[:, c], sample_weight=weights)
        assert auroc(scores[:, c], truth[:, c], weights[None])[0] == pytest.approx(expected, abs=1e-12)


def test_the_figure_of_several_seeds_is_the_mean_over_them_and_is_resampled_as_one():
    rng = np.random.default_rng(0)
    truth = rng.random((200, 2)) < 0.4
    scores = np.stack([truth + rng.normal(size=truth.shape) * spread for spread in (0.5, 1.0, 2.0)])
    patients, names = np.arange(200) // 2, [("A", "a"), ("B", "b")]
    table = score_classes([scores], truth, patients, names, resamples=300, seed=0)[0]
    alone = [score_classes([each], truth, patients, names, resamples=300, seed=0)[0] for each in scores]
    assert table.macro.value == pytest.approx(np.mean([each.macro.value for each in alone]), abs=1e-12)
    drawn = np.mean([each.sample.resampled for each in alone], axis=0)
    np.testing.assert_allclose(table.sample.resampled, drawn, atol=1e-12)
    assert table.macro.low < table.macro.value < table.macro.high
    assert alone[0].macro == score_classes([scores[:1]], truth, patients, names, resamples=300, seed=0)[0].macro


def test_a_resample_without_positives_is_undefined_not_zero():
    weights = np.array([[0.0, 1, 1], [1, 1, 1]])
    values = auroc(np.array([3.0, 2, 1]), np.array([True, False, False]), weights)
    assert np.isnan(values[0])
    assert values[1] == 1.0


def test_non_finite_scores_are_refused():
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        auroc(np.array([0.0, np.nan, 1]), np.array([True, False, False]))


def test_resamples_weigh_all_records_of_a_patient_alike_and_lose_nobody():
    patients = np.array(["a", "b", "b", "c", "c", "c"])
    weights = np.concatenate(list(patient_resamples(patients, 500, seed=3)))
    assert weights.shape == (500, 6) and (weights > 0).all()
    assert (weights[:, 1] == weights[:, 2]).all()
    assert (weights[:, 3] == weights[:, 4]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert weights[:, [0, 1, 3]].mean() == pytest.approx(1, abs=0.1)
    assert len(np.unique(weights, axis=0)) == 500


def test_every_resample_holds_every_class_however_rare():
    truth = np.zeros((200, 16), dtype=bool)
    truth[np.arange(16), np.arange(16)] = True
    table = bootstrap_auroc([np.random.default_rng(0).normal(size=(200, 16))], truth, np.arange(200), resamples=100)[0]
    assert np.isfinite(table).all()


def test_resamples_do_not_depend_on_the_chunk_size(monkeypatch):
    patients = np.arange(11) // 2
    whole = np.concatenate(list(patient_resamples(patients, 20, seed=1)))
    monkeypatch.setattr("cardialign.pretrain.evaluation.scoring.CHUNK_ELEMENTS", 33)
    assert (np.concatenate(list(patient_resamples(patients, 20, seed=1))) == whole).all()


def test_classes_without_positives_or_without_negatives_are_named_with_the_reason():
    truth = np.array([[1, 0, 1], [1, 0, 0]], dtype=bool)
    usable, reasons = usable_classes(truth)
    assert usable.tolist() == [2]
    assert reasons == {0: "no negatives among 2 records", 1: "no positives among 2 records"}


def test_several_seeds_are_scored_over_decided_records_and_resampled_among_more_patients():
    rng = np.random.default_rng(4)
    seeds, truth, decided = rng.normal(size=(3, 120, 2)), rng.random((120, 2)) < 0.4, rng.random((120, 2)) < 0.7
    patients, everybody = np.arange(120) // 2 + 30, np.arange(200)
    names = [("a", "a"), ("b", "b")]
    (table,) = score_classes([seeds], truth, patients, names, resamples=25, seed=3, among=everybody, decided=decided)
    weights = np.concatenate(list(patient_resamples(patients, 25, 3, everybody)))
    for c in range(2):
        rows = decided[:, c]
        alone = [count_pairs(each[rows, c], truth[rows, c], np.ones(rows.sum())) for each in seeds]
        assert table.classes[c].auroc == pytest.approx(np.mean(alone), abs=1e-12)
        drawn = [np.mean([count_pairs(each[rows, c], truth[rows, c], w[rows]) for each in seeds]) for w in weights]
        np.testing.assert_allclose(table.sample.resampled[:, c], drawn, rtol=1e-9)


def test_a_class_is_scored_over_its_decided_records_as_if_there_were_no_others():
    rng = np.random.default_rng(3)
    scores, truth, decided = rng.normal(size=(200, 3)), rng.random((200, 3)) < 0.3, rng.random((200, 3)) < 0.8
    decided[:, 2] = True
    scores[~decided & ~truth] += 5  # would spoil the figure as negatives
    patients = np.arange(200) // 2
    names = [("a", "a"), ("b", "b"), ("c", "c")]
    (table,) = score_classes([scores], truth, patients, names, resamples=40, seed=0, decided=decided)
    for c, entry in enumerate(table.classes):
        rows = decided[:, c]
        assert entry.auroc == auroc(scores[rows, c], truth[rows, c])[0]
        assert entry.positives == truth[rows, c].sum() and entry.positive_patients == len(
            set(patients[rows & truth[:, c]])
        )
    (whole,) = score_classes([scores], truth, patients, names, resamples=40, seed=0)
    assert table.classes[2] == whole.classes[2] and table.classes[0].auroc > whole.classes[0].auroc
    none = np.zeros((200, 3), dtype=bool)
    assert usable_classes(truth, none | truth)[1] == {
        c: f"no negatives among {truth[:, c].sum()} records" for c in range(3)
    }
