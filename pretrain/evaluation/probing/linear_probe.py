"""The linear probe: how much of the labels a linear map reads from features that stay as they are.

Features are computed once. The strength of the penalty is chosen on the validation records, by the macro AUROC of the
classes that they hold; the test records are scored once, with that choice.
Features are those of whole records, or of their pieces (n, W, F), NaN of one that is not used: each piece is then a
record of its own while the probe learns, and the pieces' probabilities are averaged.
Legend: n records, W windows, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from cardialign.pretrain.evaluation.probing.logistic import LogisticClassifier, fit_path
from cardialign.pretrain.evaluation.probing.neighbours import neighbour_scores
from cardialign.pretrain.evaluation.probing.subsets import subset
from cardialign.pretrain.evaluation.scoring import class_auroc, decided_at, usable_classes
from cardialign.pretrain.evaluation.windows import mean_over_windows

STRENGTHS = tuple(10.0**k for k in np.arange(-5.0, 1.5, 0.5))
NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Parts:
    """Places (int64) of the training, validation and test records among the n that have features: ascending, those of
    training in the order of a published label file where there is one."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class ProbeFit:
    """One probe.

    share, style, seed   of the training records (`subsets.subset`), `records` of them
    choice               strength of the penalty, or the number of neighbours
    validation           macro AUROC that chose it
    scores               float64 (test records, C)
    unseen               classes without positives or negatives in that part: every record has the same score, so that
                         they count 0.5 and are not left out
    """

    share: float
    style: str
    seed: int
    records: int
    choice: float
    validation: float
    scores: np.ndarray
    unseen: tuple[int, ...]


@dataclass(frozen=True)
class Learnable:
    """What a probe may learn and choose by. rows: places of its training records; learnt: the classes that they have
    and lack; judged: places among these classes of those that the validation records can rank.

    truth, decided (n, C') bool: of the learnt classes, for all records. A record that leaves a class open is no
    negative of it: it is neither learnt from nor chosen by for this class. decided None = nothing is open.
    """

    rows: np.ndarray
    learnt: np.ndarray
    judged: np.ndarray
    truth: np.ndarray
    decided: np.ndarray | None

    @classmethod
    def of(cls, truth: np.ndarray, parts: Parts, decided: np.ndarray | None, chosen: np.ndarray) -> Learnable:
        """chosen: places of the training records. Raises ValueError when no class is left to learn and choose by."""
        learnt, _ = usable_classes(truth[chosen], decided_at(decided, chosen))
        truth, decided = truth[:, learnt], decided_at(decided, columns=learnt)
        judged, _ = usable_classes(truth[parts.validation], decided_at(decided, parts.validation))
        if not judged.size:
            raise ValueError("no class has positives and negatives both in training and in validation")
        return cls(chosen, learnt, judged, truth, decided)

    def macro(self, scores: np.ndarray, places: np.ndarray) -> float:
        """Macro AUROC of the judged classes: scores (m, C') of the records at these places."""
        known = decided_at(self.decided, places, self.judged)
        return float(class_auroc(scores[:, self.judged], self.truth[places][:, self.judged], known).mean())

    def choose(self, candidates: Sequence[np.ndarray], places: np.ndarray) -> tuple[int, float]:
        """The first of the best: the most regularised one, the smallest k."""
        values = [self.macro(scores, places) for scores in candidates]
        best = int(np.argmax(values))
        return best, values[best]


def learnable(
    truth: np.ndarray, parts: Parts, decided: np.ndarray | None, share: float, style: str, seed: int
) -> Learnable:
    """The same for a part of the training records (`subsets.subset`)."""
    known = truth if decided is None else truth & decided
    return Learnable.of(truth, parts, decided, parts.train[subset(known[parts.train], share, style, seed)])


@dataclass(frozen=True)
class Fitted:
    """The regression that the validation records chose, for the classes that are learnt; validation: by what figure."""

    known: Learnable
    classifier: LogisticClassifier
    validation: float


def fitted(
    features: np.ndarray,
    truth: np.ndarray,
    parts: Parts,
    share: float = 1.0,
    style: str = "random",
    seed: int = 0,
    decided: np.ndarray | None = None,
) -> Fitted:
    """What `probe` fits; the test records are not looked at. Raises ValueError as `probe`."""
    known = learnable(truth, parts, decided, share, style, seed)
    rows = known.rows
    pieces, of = _separate(features[rows])
    path = fit_path(pieces, known.truth[rows][of], STRENGTHS, decided_at(decided_at(known.decided, rows), of))
    candidates = [_record_scores(found, features[parts.validation]) for found in path]
    best, value = known.choose(candidates, parts.validation)
    return Fitted(known, path[best], value)


def probe(
    features: np.ndarray,
    truth: np.ndarray,
    parts: Parts,
    share: float = 1.0,
    style: str = "random",
    seed: int = 0,
    decided: np.ndarray | None = None,
) -> ProbeFit:
    """Features (n, F), or (n, W, F) of pieces, truth bool (n, C) -> the regression that the validation records choose.

    decided bool (n, C), None = all: a class is learnt from these records, and chosen by them.
    Raises ValueError when no class can be learnt, or none is left to choose by.
    """
    found = fitted(features, truth, parts, share, style, seed, decided)
    learnt = found.known.learnt
    scores = np.zeros((len(parts.test), truth.shape[1]))
    scores[:, learnt] = _record_scores(found.classifier, features[parts.test])
    unseen, records = unseen_classes(learnt, truth.shape[1]), len(found.known.rows)
    return ProbeFit(share, style, seed, records, found.classifier.strength, found.validation, scores, unseen)


def neighbours(
    features: np.ndarray,
    truth: np.ndarray,
    parts: Parts,
    share: float = 1.0,
    style: str = "random",
    seed: int = 0,
    decided: np.ndarray | None = None,
) -> ProbeFit:
    """The same by k nearest neighbours; the validation records choose k. Nothing is fitted; pieces are averaged."""
    features = _averaged(features)
    known = learnable(truth, parts, decided, share, style, seed)
    rows, learnt = known.rows, known.learnt
    counts = [k for k in NEIGHBOURS if k <= len(rows)]

    def voted(asked: np.ndarray, k: int) -> np.ndarray:
        return neighbour_scores(features[rows], known.truth[rows], asked, k, decided_at(known.decided, rows))

    best, value = known.choose([voted(features[parts.validation], k) for k in counts], parts.validation)
    scores = np.zeros((len(parts.test), truth.shape[1]))
    scores[:, learnt] = voted(features[parts.test], counts[best])
    return ProbeFit(share, style, seed, len(rows), counts[best], value, scores, unseen_classes(learnt, truth.shape[1]))


def unseen_classes(learnt: np.ndarray, classes: int) -> tuple[int, ...]:
    return tuple(c for c in range(classes) if c not in set(learnt.tolist()))


def _separate(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every piece that holds signal as a row (m, F), and the place (m,) of its record."""
    if features.ndim == 2:
        return features, np.arange(len(features))
    used = np.isfinite(features).all(axis=2)
    if not used[:, 0].all():  # the first piece of a record always counts
        raise ValueError("the features hold values that are not finite")
    return features[used], np.nonzero(used)[0]


def _record_scores(classifier: LogisticClassifier, features: np.ndarray) -> np.ndarray:
    """Log odds float64 (n, C) of whole records; of records in pieces the mean of the pieces' probabilities."""
    if features.ndim == 2:
        return classifier.scores(features)
    return mean_over_windows(expit(classifier.scores(features)))


def _averaged(features: np.ndarray) -> np.ndarray:
    """(n, F): of pieces their mean."""
    return features if features.ndim == 2 else mean_over_windows(features)
