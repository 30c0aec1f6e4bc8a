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


def strangers(pairs: Pairs, rows: np.ndarray, report: np.ndarray, proposals: Proposals, most: int, seed: int) -> Pairs:
    """The features of up to `most` pairs, each beside a record for which it was not proposed: how many of these the
    threshold lets through is how little it asks."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(pairs.rows))[:most])
    feature, place = pairs.feature[chosen], rng.integers(0, len(rows), chosen.size)
    width = max(1, len(proposals.features))
    proposed = np.array([r * width + f for r, each in proposals.of_report.items() for f in each], dtype=np.int64)
    strange = ~np.isin(report[place].astype(np.int64) * width + feature, proposed)
    return Pairs(rows[place[strange]], feature[strange])
