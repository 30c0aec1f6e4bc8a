"""What the answers propose for each report, and which records that makes pairs of: a record and a feature to be scored.

Legend: R distinct reports of the set, F distinct features, n records to be completed, P pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cardialign.cluster.completion.answers import AnswerStore
from cardialign.cluster.completion.guard import LeakGuard
from cardialign.cluster.completion.prompt import features_of

EACH, FEWEST = 200, 50
"""Strangers that are drawn for a feature, and the least that can say what it is worth."""


@dataclass
class Proposals:
    """features: the distinct ones (letter case aside), as first spelled. of_report: report -> their numbers, in the
    order of the answer. dropped: (feature as spelled, why) -> in how many reports the guard dropped it. lists, prose,
    unanswered: how many reports were answered by a list, by something else, not at all.
    """

    features: list[str] = field(default_factory=list)
    of_report: dict[int, list[int]] = field(default_factory=dict)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    lists: int = 0
    prose: int = 0
    unanswered: int = 0


def propose(
    reports: Sequence[int],
    statements: Sequence[Sequence[str]],
    texts: Sequence[str],
    store: AnswerStore,
    guard: LeakGuard,
) -> Proposals:
    """reports: their numbers; statements and texts: of each of these."""
    found, numbers = Proposals(), dict[str, int]()
    for report, own, text in zip(reports, statements, texts, strict=True):
        answer = store.get(text)
        if answer is None:
            found.unanswered += 1
            continue
        features = features_of(answer.content)
        if features is None:
            found.prose += 1
            continue
        found.lists += 1
        kept = []
        for feature in features:
            why = guard.why_dropped(feature, own)
            if why is not None:
                found.dropped[feature, why] += 1
                continue
            number = numbers.setdefault(feature.casefold(), len(numbers))
            if number == len(found.features):
                found.features.append(feature)
            kept.append(number)
        if kept:
            found.of_report[report] = kept
    return found


@dataclass(frozen=True)
class Pairs:
    """rows int64 (P,) ascending, feature int64 (P,): in the order of each answer."""

    rows: np.ndarray
    feature: np.ndarray


def pairs_of(proposals: Proposals, rows: np.ndarray, report: np.ndarray) -> Pairs:
    """Of the records `rows` (n,), ascending, with reports `report` (n,)."""
    size = int(report.max(initial=-1)) + 1
    counts = np.zeros(size, dtype=np.int64)
    flat: list[int] = []
    starts = np.zeros(size, dtype=np.int64)
    for number, features in proposals.of_report.items():
        counts[number], starts[number] = len(features), len(flat)
        flat += features
    sizes = counts[report]
    ends = np.cumsum(sizes)
    within = np.arange(int(sizes.sum())) - np.repeat(ends - sizes, sizes)
    return Pairs(np.repeat(rows, sizes), np.array(flat, dtype=np.int64)[np.repeat(starts[report], sizes) + within])


def strangers(rows: np.ndarray, report: np.ndarray, proposals: Proposals, seed: int) -> Pairs:
    """Every feature beside up to EACH records for which it was not proposed, drawn with replacement: how many of these
    a threshold lets through is how little it asks. Sorted by feature."""
    rng = np.random.default_rng(seed)
    width = len(proposals.features)
    feature = np.repeat(np.arange(width), EACH)
    place = rng.integers(0, len(rows), feature.size)
    proposed = np.array([r * width + f for r, each in proposals.of_report.items() for f in each], dtype=np.int64)
    strange = ~np.isin(report[place].astype(np.int64) * width + feature, proposed)
    return Pairs(rows[place[strange]], feature[strange])


def own_thresholds(strange: np.ndarray, of: np.ndarray, features: int, share: float) -> np.ndarray:
    """float64 (F,): of each feature the probability that at most `share` of its strangers exceed; 1 where there are
    fewer than FEWEST of them.

    strange (S,): probabilities of strangers; of (S,): their features, ascending.
    """
    found = np.ones(features)
    edges = np.searchsorted(of, np.arange(features + 1))
    for k in range(features):
        values = np.sort(strange[edges[k] : edges[k + 1]])
        if values.size >= FEWEST:
            found[k] = values[values.size - 1 - int(share * values.size)]
    return found
