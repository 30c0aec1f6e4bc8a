"""AUROC is what counting pairs by hand gives, with ties, with weights, per resample.

Intervals know that patients repeat.
"""

from __future__ import annotations

import numpy as np
import pytest

from cardialign.pretrain.evaluation.scoring import (
    Estimate,
    auroc,
    bootstrap_auroc,
    class_auroc,
    patient_resamples,
    percentile_interval,
    row_means,
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


def test_a_resample_without_positives_is_undefined_not_zero():
    weights = np.array([[0.0, 1, 1], [1, 1, 1]])
    values = auroc(np.array([3.0, 2, 1]), np.array([True, False, False]), weights)
    assert np.isnan(values[0])
    assert values[1] == 1.0


def test_non_finite_scores_are_refused():
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        auroc(np.array([0.0, np.nan, 1]), np.array([True, False, False]))


def test_resamples_take_all_records_of_a_patient_or_none_and_keep_the_number_of_patients():
    patients = np.array(["a", "b", "b", "c", "c", "c"])
    weights = np.concatenate(list(patient_resamples(patients, 50, seed=3)))
    assert weights.shape == (50, 6)
    assert (weights[:, 1] == weights[:, 2]).all()
    assert (weights[:, 3] == weights[:, 4]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert len(np.unique(weights, axis=0)) > 5


def test_resamples_do_not_depend_on_the_chunk_size(monkeypatch):
    patients = np.arange(11) // 2
    whole = np.concatenate(list(patient_resamples(patients, 20, seed=1)))
    monkeypatch.setattr("cardialign.pretrain.evaluation.scoring.CHUNK_ELEMENTS", 33)
    assert (np.concatenate(list(patient_resamples(patients, 20, seed=1))) == whole).all()


def test_the_interval_is_wider_when_records_repeat_within_patients():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.random(60) < 0.4, 5)[:, None]
    scores = (np.repeat(rng.normal(size=60), 5) + truth[:, 0])[:, None]
    by_patient = bootstrap_auroc([scores], truth, np.arange(300) // 5, resamples=300)[0][:, 0]
    by_record = bootstrap_auroc([scores], truth, np.arange(300), resamples=300)[0][:, 0]

    def width(values):
        low, high = percentile_interval(values)
        return high - low

    assert width(by_patient) > 1.5 * width(by_record)


def test_the_interval_covers_the_true_auroc_about_as_often_as_it_says():
    """Normal scores one standard deviation apart: AUROC = Phi(1 / sqrt 2) = 0.7602."""
    hits = 0
    for trial in range(60):
        rng = np.random.default_rng(1000 + trial)
        truth = (np.arange(120) < 50)[:, None]
        scores = rng.normal(size=(120, 1)) + truth
        low, high = percentile_interval(
            bootstrap_auroc([scores], truth, np.arange(120), resamples=200, seed=trial)[0][:, 0]
        )
        hits += low <= 0.7602 <= high
    assert hits >= 51  # 95 % nominal; 51 of 60 has a chance of about 1 in 500 of failing by luck


def test_differences_are_paired_so_equal_scores_differ_by_exactly_nothing():
    rng = np.random.default_rng(5)
    truth = rng.random((80, 3)) < 0.4
    scores = rng.normal(size=(80, 3))
    one, two, better = bootstrap_auroc([scores, scores, scores + truth], truth, np.arange(80) // 2, resamples=100)
    assert np.array_equal(one, two)
    low, high = percentile_interval(row_means(better) - row_means(one))
    assert 0 < low < high


def test_macro_of_a_resample_leaves_undefined_classes_out():
    table = np.array([[0.5, np.nan, 1.0], [np.nan, np.nan, np.nan]])
    means = row_means(table)
    assert means[0] == 0.75
    assert np.isnan(means[1])
    assert Estimate.of(0.75, np.array([0.7, np.nan, 0.8])).low >= 0.7


def test_classes_without_positives_or_without_negatives_are_named_with_the_reason():
    truth = np.array([[1, 0, 1], [1, 0, 0]], dtype=bool)
    usable, reasons = usable_classes(truth)
    assert usable.tolist() == [2]
    assert reasons == {0: "no negatives among 2 records", 1: "no positives among 2 records"}
