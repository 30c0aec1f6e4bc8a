"""Methods side by side: one table per kind of evaluation, what in it is not comparable, and paired differences.

The figures of a column stand on one ground where records, labels, protocol, prompts and parts are the same. The ground
of most methods is that of the column; a figure of another one, or of an encoder that was trained on what it is scored
on, is marked and named, and is part of no mean and of no difference.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cardialign.cluster.comparison.figure import FOUND, KINDS, Column, Figure, unlike
from cardialign.cluster.comparison.methods import Method
from cardialign.pretrain.evaluation.intervals import Sample, difference_interval, mean_interval
from cardialign.pretrain.evaluation.scored import ScoredRecords, joint_samples

SEEN, PLACE = -1, 0
"""Ground of what was trained on its records; ground of the column."""
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Entry:
    """What a method has in a column on one ground. value, sd, low, high: macro AUROC in 0..1.

    sd over `seeds` runs or subsets, None for one. marked: why it is not comparable, "" where it is.
    """

    value: float
    sd: float | None
    low: float | None
    high: float | None
    seeds: int
    figures: tuple[Figure, ...]
    marked: str = ""
    parts: tuple[ScoredRecords, ...] = ()
    unpaired: str = ""


@dataclass(frozen=True)
class Difference:
    """Macro AUROC of `mine` less that of `theirs` on the same resamples of patients, in 0..1; NaN limits: none."""

    column: Column
    mine: str
    theirs: str
    value: float
    low: float
    high: float
    records: int
    patients: int


@dataclass
class Comparison:
    """entries: (method, column) -> its entries, those on the column's ground first."""

    methods: list[Method]
    columns: list[Column]
    entries: dict[tuple[str, Column], list[Entry]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    lacking: dict[str, list[str]] = field(default_factory=dict)

    def entry(self, method: str, column: Column) -> Entry | None:
        """The one on the column's ground."""
        found = self.entries.get((method, column), [])
        return found[0] if found and not found[0].marked else None

    def mean(self, method: str, columns: Sequence[Column]) -> float | None:
        """Over columns, where the method has a comparable figure in every one of several."""
        found = [self.entry(method, column) for column in columns]
        values = [each.value for each in found if each is not None]
        return sum(values) / len(values) if len(values) == len(columns) > 1 else None

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in KINDS if any(column.kind == kind for column in self.columns)]

    def shares(self, kind: str) -> list[float | None]:
        return list(dict.fromkeys(column.share for column in self.columns if column.kind == kind))

    @property
    def unpaired(self) -> list[str]:
        """Why some figures have no paired difference, and whose."""
        return [f"{why}: {_several(names)}" for why, names in self.lacking.items()]

    def marks(self) -> list[tuple[str, Column, Entry]]:
        """Every figure that is not comparable: method, column, the figure with the reason."""
        return [(method, column, each) for (method, column), of in self.entries.items() for each in of if each.marked]

    def remarks(self) -> list[str]:
        """What the evaluations themselves say of their figures, once each."""
        out: dict[str, list[str]] = {}
        runs = {method.name: len(method.members) for method in self.methods}
        for (method, column), of in self.entries.items():
            if not of[0].marked and len(of[0].figures) < runs[method]:
                few = f"{method}: {len(of[0].figures)} of its {runs[method]} runs have a comparable figure"
                out.setdefault(few, []).append(str(column))
            for figure in [figure for each in of for figure in each.figures]:
                seen = [figure.seen_words] if figure.seen_words and figure.seen != FOUND else []
                for words in [*figure.remarks, *seen]:
                    out.setdefault(f"{method}: {words}", []).append(str(column))
        return [f"{words} ({_several(columns)})" for words, columns in out.items()]


def _several(columns: Sequence[str]) -> str:
    names = list(dict.fromkeys(columns))
    return "; ".join(names) if len(names) <= 3 else f"{names[0]}, and {len(names) - 1} more"


def compare(methods: Sequence[Method], resamples: int = 1000, told: Told | None = None) -> Comparison:
    """told: columns done, of; the bootstrap takes the time."""
    columns = sorted({column for method in methods for column in method.columns}, key=lambda column: column.place)
    found = Comparison(list(methods), columns)
    for done, column in enumerate(columns):
        _fill(found, column, resamples)
        if told is not None:
            told(done + 1, len(columns))
    return found


def _fill(found: Comparison, column: Column, resamples: int) -> None:
    grounds, chosen = _grounds(found.methods, column)
    for method in found.methods:
        of: dict[int, list[Figure]] = {}
        for member in method.members:
            for figure in member.figures.get(column, []):
                of.setdefault(_ground_of(figure, grounds), []).append(figure)
        if of:
            order = sorted(of, key=lambda ground: (ground != chosen, ground))
            reference = grounds[chosen][0] if grounds else None
            found.entries[method.name, column] = [
                _entry(of[ground], len(method.members), _why(of[ground][0], reference, ground == chosen))
                for ground in order
            ]
    _pair(found, column, resamples)


def _grounds(methods: Sequence[Method], column: Column) -> tuple[list[list[Figure]], int]:
    """Figures by ground, and which of these most methods stand on: floors do not count, the first of several does."""
    grounds: list[list[Figure]] = []
    holders: list[set[str]] = []
    for method in methods:
        for figure in [figure for member in method.members for figure in member.figures.get(column, [])]:
            if figure.seen == FOUND:
                continue
            at = next((k for k, of in enumerate(grounds) if not unlike(of[0], figure)), len(grounds))
            if at == len(grounds):
                grounds.append([])
                holders.append(set())
            grounds[at].append(figure)
            if not method.floor:
                holders[at].add(method.name)
    chosen = max(range(len(grounds)), key=lambda k: (len(holders[k]), -k), default=PLACE)
    return grounds, chosen


def _ground_of(figure: Figure, grounds: Sequence[Sequence[Figure]]) -> int:
    if figure.seen == FOUND:
        return SEEN
    return next(k for k, of in enumerate(grounds) if any(each is figure for each in of))


def _why(figure: Figure, reference: Figure | None, comparable: bool) -> str:
    if figure.seen == FOUND:
        return figure.seen_words
    return "" if comparable or reference is None else "; ".join(unlike(reference, figure))


def _entry(figures: Sequence[Figure], members: int, marked: str) -> Entry:
    """Of one run its figure; of several the mean over them, whose interval waits for the resamples."""
    own = tuple(figures)
    unpaired = next((each.unpaired for each in own if each.unpaired), "")
    parts = () if unpaired or not all(each.parts for each in own) else _stacked(own)
    if len(own) == 1:
        one = own[0]
        return Entry(one.value, one.sd, one.low, one.high, one.seeds, own, marked, parts, unpaired)
    values = [each.value for each in own]
    return Entry(
        statistics.fmean(values), statistics.stdev(values), None, None, len(values), own, marked, parts, unpaired
    )


def _stacked(figures: Sequence[Figure]) -> tuple[ScoredRecords, ...]:
    """The scores of several seeds as those of one system: their figures are averaged within each resample."""
    return tuple(
        replace(parts[0], scores=np.concatenate([part.scores for part in parts]))
        for parts in zip(*[figure.parts for figure in figures], strict=True)
    )


def _pair(found: Comparison, column: Column, resamples: int) -> None:
    """Differences of all pairs of the column, and intervals of what is the mean of several runs."""
    here = [(method.name, entry) for method in found.methods if (entry := found.entry(method.name, column)) is not None]
    having = [(name, entry) for name, entry in here if entry.parts]
    if len(here) > 1:
        floors = {method.name for method in found.methods if method.floor}
        for name, entry in here:
            if not entry.parts and name not in floors:
                found.lacking.setdefault(entry.unpaired, []).append(f"{name}, {column}")
    if len(having) < 2 and not any(entry.low is None for _, entry in having):
        return
    try:
        samples = joint_samples([entry.parts for _, entry in having], resamples) if having else []
    except ValueError as error:
        found.lacking.setdefault(str(error), []).append(str(column))
        return
    for (name, entry), sample in zip(having, samples, strict=True):
        if len(entry.figures) > 1:
            low, high = mean_interval(sample)
            done = replace(entry, low=None if np.isnan(low) else low, high=None if np.isnan(high) else high)
            found.entries[name, column][0] = done
    for k, (mine, entry) in enumerate(having):
        for j in range(k):
            found.differences.append(_difference(column, (mine, having[j][0]), (samples[k], samples[j]), entry.parts))


def _difference(
    column: Column, names: tuple[str, str], samples: tuple[Sample, Sample], parts: Sequence[ScoredRecords]
) -> Difference:
    value = float(samples[0].point.mean() - samples[1].point.mean())
    patients = len(set(np.concatenate([part.patients for part in parts]).tolist()))
    records = sum(len(part.truth) for part in parts)
    return Difference(column, *names, value, *difference_interval(*samples), records, patients)
