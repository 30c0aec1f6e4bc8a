"""A probe over pieces of records: each piece is a record of its own while it learns, their probabilities are averaged.

Features (n, F) of whole records pass as they are; of pieces they are (n, W, F), NaN of one without signal.
Legend: n records, W windows, F features, C classes.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from cardialign.pretrain.evaluation.probing.logistic import LogisticClassifier
from cardialign.pretrain.evaluation.windows import mean_over_windows


def separate(features: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every piece that holds signal as a row (m, F), with the truth bool (m, C) of its record."""
    if features.ndim == 2:
        return features, truth
    used = np.isfinite(features).all(axis=2)
    return features[used], truth[np.nonzero(used)[0]]


def record_scores(classifier: LogisticClassifier, features: np.ndarray) -> np.ndarray:
    """Log odds float64 (n, C) of whole records; of records in pieces the mean of the pieces' probabilities."""
    if features.ndim == 2:
        return classifier.scores(features)
    return mean_over_windows(expit(classifier.scores(features)))


def averaged(features: np.ndarray) -> np.ndarray:
    """(n, F): of pieces their mean."""
    return features if features.ndim == 2 else mean_over_windows(features)
