"""The probe: it finds what is linear in the features, chooses on validation, and touches the test records once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cardialign.pretrain.evaluation.probing.linear_probe import Parts, ProbeFit, neighbours, probe
from cardialign.pretrain.evaluation.scoring import class_auroc

PARTS = Parts(np.arange(0, 300), np.arange(300, 400), np.arange(400, 600))
both = pytest.mark.parametrize("method", [probe, neighbours])


def data(noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(600, 12)).astype(np.float32)
    logits = features[:, :3] + noise * draw.normal(size=(600, 3))
    return features, logits > np.array([0.0, 0.5, 1.2])


@both
def test_what_is_linear_in_the_features_is_found(method: Callable[..., ProbeFit]) -> None:
    features, truth = data()
    found = method(features, truth, PARTS)
    figures = class_auroc(found.scores, truth[PARTS.test])
    assert figures.min() > (0.9 if method is probe else 0.75)
    for k in range(3):
        assert figures[k] == pytest.approx(roc_auc_score(truth[PARTS.test][:, k], found.scores[:, k]), abs=1e-12)
    shuffled = method(np.random.default_rng(1).permutation(features), truth, PARTS)
    assert abs(class_auroc(shuffled.scores, truth[PARTS.test]).mean() - 0.5) < 0.1


@both
def test_labels_of_test_records_decide_nothing(method: Callable[..., ProbeFit]) -> None:
    features, truth = data()
    first = method(features, truth, PARTS)
    turned = truth.copy()
    turned[PARTS.test] = ~turned[PARTS.test]
    again = method(features, turned, PARTS)
    assert first.choice == again.choice and first.validation == again.validation
    np.testing.assert_array_equal(first.scores, again.scores)


def test_the_penalty_is_chosen_by_the_validation_records_alone() -> None:
    """Few noisy records and many useless features: little strength wins; without noise, much."""
    draw = np.random.default_rng(2)
    useless = draw.normal(size=(600, 300)).astype(np.float32)
    noisy, truth = data(noise=3.0)
    weak = probe(np.hstack([noisy, useless]), truth, Parts(np.arange(60), PARTS.validation, PARTS.test))
    clean, easy = data(noise=0.0)
    strong = probe(clean, easy, PARTS)
    assert weak.choice < 0.1 < strong.choice


@both
def test_a_class_nobody_could_learn_counts_one_half_and_is_named(method: Callable[..., ProbeFit]) -> None:
    features, truth = data()
    truth[PARTS.train, 1] = False
    found = method(features, truth, PARTS)
    assert found.unseen == (1,)
    assert class_auroc(found.scores, truth[PARTS.test])[1] == 0.5


@both
def test_a_part_of_the_training_records_is_what_was_asked_for(method: Callable[..., ProbeFit]) -> None:
    features, truth = data()
    found = method(features, truth, PARTS, share=0.1, style="stratified", seed=4)
    assert (found.records, found.share, found.style, found.seed) == (30, 0.1, "stratified", 4)
    other = method(features, truth, PARTS, share=0.1, style="stratified", seed=5)
    assert not np.array_equal(found.scores, other.scores)


@both
def test_nothing_to_choose_by_is_refused(method: Callable[..., ProbeFit]) -> None:
    features, truth = data()
    truth[PARTS.validation] = False
    with pytest.raises(ValueError, match="in training and in validation"):
        method(features, truth, PARTS)
