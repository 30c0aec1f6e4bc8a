"""Logistic regression of many classes at once: what scikit-learn finds for each class alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from cardialign.pretrain.evaluation.probing.logistic import fit_path


def data(n: int, features: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of very different size, places and correlation; classes of which some are rare."""
    draw = np.random.default_rng(seed)
    mixed = draw.normal(size=(n, features)) @ draw.normal(size=(features, features))
    x = (mixed * 10.0 ** draw.uniform(-2, 2, features) + draw.normal(size=features) * 5).astype(np.float32)
    logits = (x - x.mean(0)) / x.std(0) @ draw.normal(size=(features, classes)) - np.linspace(0, 2, classes)
    return x, draw.uniform(size=logits.shape) < 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize(("n", "features"), [(200, 10), (60, 100)], ids=["more-records", "more-features"])
def test_every_class_gets_what_scikit_learn_gives_it_alone(n: int, features: int) -> None:
    x, truth = data(n + 50, features, classes=4)
    mean, deviation = x[:n].astype(np.float64).mean(0), x[:n].astype(np.float64).std(0)
    standard = (x - mean) / deviation
    for found in fit_path(x[:n], truth[:n], [0.01, 1.0]):
        for k in range(4):
            alone = LogisticRegression(C=found.strength, tol=1e-10, max_iter=20_000).fit(standard[:n], truth[:n, k])
            expected = alone.decision_function(standard)
            spread = expected.std()
            np.testing.assert_allclose(found.scores(x)[:, k], expected, rtol=0, atol=5e-3 * spread)


def test_strengths_come_back_in_order_and_fit_closer_and_closer() -> None:
    x, truth = data(100, 20, classes=2)
    path = fit_path(x, truth, [1.0, 0.001, 0.03])
    assert [found.strength for found in path] == [0.001, 0.03, 1.0]
    sizes = [float(np.square(found.weights * x.std(0)[:, None]).sum()) for found in path]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_a_class_without_a_pattern_gets_its_rate() -> None:
    """With next to no strength only the free intercept is left: the log odds of the rate."""
    x, _ = data(80, 5, classes=1)
    truth = np.zeros((80, 1), dtype=bool)
    truth[:20] = True
    (found,) = fit_path(x, truth, [1e-9])
    np.testing.assert_allclose(found.scores(x), np.log(20 / 60), atol=1e-4)


def test_a_feature_that_never_changes_has_no_weight() -> None:
    x, truth = data(100, 4, classes=1)
    x[:, 2] = 7.25
    (found,) = fit_path(x, truth, [1.0])
    assert found.weights[2] == 0 and np.isfinite(found.scores(x)).all()


def test_what_cannot_be_fitted_is_refused() -> None:
    x, truth = data(20, 3, classes=2)
    truth[:, 1] = False
    with pytest.raises(ValueError, match="positives and negatives"):
        fit_path(x, truth, [1.0])
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        fit_path(x, truth[:, :1], [1.0])


def test_features_that_vary_a_thousand_times_as_much_along_some_axes_are_fitted_to_the_end() -> None:
    """As encoders' features are: the slope at the result is that of a minimum, at every strength."""
    draw = np.random.default_rng(0)
    inner = draw.normal(size=(600, 40)) * np.geomspace(30, 0.03, 40)
    features = inner @ np.linalg.qr(draw.normal(size=(40, 40)))[0]
    truth = inner @ (draw.normal(size=(40, 2)) / np.geomspace(30, 0.03, 40)[:, None]) + draw.normal(size=(600, 2)) > 1
    deviation = features.std(axis=0)
    for found in fit_path(features, truth, [1e-3, 1.0, 100.0]):
        errors = expit(found.scores(features)) - truth
        standard = (features - features.mean(axis=0)) / deviation
        slope = (standard.T @ errors + found.weights * deviation[:, None] / found.strength) / 600
        assert abs(slope).max() < 2e-5 and abs(errors.mean(axis=0)).max() < 2e-5
