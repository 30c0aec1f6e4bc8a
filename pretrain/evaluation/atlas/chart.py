"""A map of an encoder, or of two beside each other: the same sample of records, laid out by each, with figures.

Legend: n records, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.atlas.layout import places, turned_onto, usual_perplexity
from cardialign.pretrain.evaluation.atlas.surroundings import Labelled, Surroundings, mean_of, surroundings
from cardialign.pretrain.evaluation.features import EmbedOptions, Progress, embed_set
from cardialign.pretrain.evaluation.overlap import find_overlap
from cardialign.pretrain.evaluation.prompts import load_prompts, prompt_set_names
from cardialign.pretrain.evaluation.result import plain
from cardialign.pretrain.export.usable import UsableEncoder

COLOURS = 6
"""So many classes have a colour of their own: more cannot be told apart, least of all by the colour-blind."""
SEVERAL, OTHER, UNLABELLED = -1, -2, -3


@dataclass(frozen=True)
class Sample:
    """rows int64 (n,) of a set, ascending, of `out_of` that were asked for; drawn by `seed` where these are fewer."""

    rows: np.ndarray
    out_of: int
    seed: int

    @property
    def words(self) -> str:
        """What stands on the picture."""
        if len(self.rows) == self.out_of:
            return f"all {self.out_of:,} records"
        return f"{len(self.rows):,} of {self.out_of:,} records, drawn with seed {self.seed}"


@dataclass(frozen=True)
class Chart:
    """One encoder's places (n, 2) of the records, and who lies near whom in its own space.

    name: as the user calls it; digest: of the encoder; trained_on: what it has seen of these records.
    """

    name: str
    digest: str
    places: np.ndarray
    near: Surroundings
    trained_on: dict[str, Any]


@dataclass(frozen=True)
class Atlas:
    """charts: one or two, of the same sample. shown: columns of the classes with a colour; colour (n,): place in
    `shown` of a record that has exactly one of them, or SEVERAL, OTHER (none of them), UNLABELLED.

    left_open: records whose codes neither state nor exclude a class, which are drawn without it. label_set is empty
    where the set has none: the map is of ages alone.
    """

    sample: Sample
    label_set: str
    about: Labelled
    shown: tuple[int, ...]
    colour: np.ndarray
    charts: tuple[Chart, ...]
    perplexity: float
    shards: str
    left_open: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; no record is named."""
        about = self.about
        counts = about.truth.sum(axis=0)
        classes = [
            {"code": code, "name": name, "records": int(count)}
            for (code, name), count in zip(about.names, counts, strict=True)
        ]
        return plain(
            {
                "records": len(self.sample.rows),
                "out_of": self.sample.out_of,
                "patients": len(np.unique(about.patients)),
                "seed": self.sample.seed,
                "label_set": self.label_set or None,
                "labelled": int(about.labelled.sum()),
                "ages_known": int(np.isfinite(about.ages).sum()),
                "classes": classes,
                "coloured": [about.names[c][0] for c in self.shown],
                "left_open": self.left_open,
                "perplexity": self.perplexity,
                "shards": self.shards,
                "charts": [self._figures(chart) for chart in self.charts],
                "differences": self.differences(),
            }
        )

    def _figures(self, chart: Chart) -> dict[str, Any]:
        near, patients, seed = chart.near, self.about.patients, self.sample.seed
        figures = {
            "sharing": near.sharing,
            "sharing_by_chance": near.chance,
            "years": near.years,
            "years_by_chance": near.years_chance,
        }
        means = {name: asdict(mean_of(values, patients, seed)) for name, values in figures.items()}
        classes = [
            {"code": code, "sharing": float(own), "by_chance": float(chance)}
            for (code, _), (own, chance) in zip(self.about.names, near.classes, strict=True)
        ]
        known = {"encoder": chart.name, "digest": chart.digest, "neighbours": near.k, "trained_on": chart.trained_on}
        return {**known, **means, "classes": classes}

    def differences(self) -> dict[str, Any]:
        """The first encoder less the second, record by record, with intervals by patient; {} of one encoder."""
        if len(self.charts) < 2:
            return {}
        a, b = (chart.near for chart in self.charts)
        told = {"sharing": a.sharing - b.sharing, "years": a.years - b.years}
        return {name: asdict(mean_of(each, self.about.patients, self.sample.seed)) for name, each in told.items()}


@dataclass(frozen=True)
class MapOptions:
    """label_set: None: the only one of the set. classes: codes to colour, None: the most frequent. records: at most so
    many of the rows; seed: of the sample and of the layout; perplexity None: `usual_perplexity`."""

    label_set: str | None = None
    classes: Sequence[str] | None = None
    records: int = 3000
    seed: int = 0
    perplexity: float | None = None
    batch_size: int = 64


def make_atlas(
    encoders: Sequence[tuple[str, UsableEncoder]],
    shard_set: ShardSet,
    rows: np.ndarray,
    options: MapOptions,
    progress: Progress | None = None,
) -> Atlas:
    """The map of these rows by one or two encoders, each with its name.

    Raises UsageError for an unknown label set or class (listing the known ones), UserError where the records do not fit
    an encoder's signal contract or make no map, DataError when a record is damaged.
    """
    _check_fit(encoders, shard_set)
    sample = draw_sample(rows, options.records, options.seed)
    label_set = _label_set(shard_set, sample.rows, options)
    about, left_open = _labelled(shard_set, sample.rows, label_set)
    shown = _shown(about, options.classes, label_set)
    how = EmbedOptions(batch_size=options.batch_size)
    embedded = embed_set([encoder for _, encoder in encoders], shard_set, sample.rows, how, progress)
    charts: list[Chart] = []
    for (name, encoder), each in zip(encoders, embedded, strict=True):
        own = places(each.embedding, seed=options.seed, perplexity=options.perplexity)
        own = turned_onto(own, charts[0].places) if charts else own
        seen = find_overlap(encoder, shard_set, sample.rows).to_dict()
        charts.append(Chart(name, encoder.digest, own, surroundings(each.embedding, about), seen))
    perplexity = options.perplexity or usual_perplexity(len(sample.rows))
    colour = colours(about.truth, about.labelled, shown)
    fingerprint = shard_set.fingerprint
    return Atlas(sample, label_set, about, shown, colour, tuple(charts), perplexity, fingerprint, left_open)


def _check_fit(encoders: Sequence[tuple[str, UsableEncoder]], shard_set: ShardSet) -> None:
    """Raises UserError that says which of the encoders was trained on another kind of records."""
    for name, encoder in encoders:
        try:
            encoder.reader(shard_set.spec)
        except UserError as error:
            raise UserError(f"{shard_set.path} is not for {name}: {error.problem}", error.remedy) from None


def draw_sample(rows: np.ndarray, records: int, seed: int) -> Sample:
    """At most so many of the rows, each as likely as any other."""
    if len(rows) <= records:
        return Sample(np.sort(rows), len(rows), seed)
    chosen = np.random.default_rng(seed).choice(rows, records, replace=False)
    return Sample(np.sort(chosen), len(rows), seed)


def colours(truth: np.ndarray, labelled: np.ndarray, shown: Sequence[int]) -> np.ndarray:
    """int (n,): which of the columns `shown` of truth (n, C) a record has, where it is exactly one; else SEVERAL,
    OTHER, UNLABELLED. A record with two classes is never painted as one of them."""
    own = truth[:, list(shown)]
    counts = own.sum(axis=1)
    found = np.where(counts == 1, own.argmax(axis=1) if own.shape[1] else 0, np.where(counts > 1, SEVERAL, OTHER))
    return np.where(labelled, found, UNLABELLED)


def _label_set(shard_set: ShardSet, rows: np.ndarray, options: MapOptions) -> str:
    """Empty of a set without labels, whose ages colour the map."""
    known, wanted = shard_set.label_sets, options.label_set
    if not known:
        aged = bool(np.isfinite(shard_set.age_years[rows].astype(np.float64)).any())
        if aged and wanted is None and options.classes is None:
            return ""
        raise UsageError(
            f"{shard_set.path} has no labels to colour a map by" + ("" if aged else ", and no ages"),
            "leave out what names labels: ages colour it then" if aged else "build the shards with labels or ages",
        )
    if wanted is not None and wanted not in known:
        raise UsageError(f"{shard_set.path} has no label set {wanted!r:.60}", f"choose one of {', '.join(known)}")
    if wanted is None and len(known) > 1:
        raise UsageError(
            f"{shard_set.path} has several label sets", f"say by which the map is coloured: {', '.join(known)}"
        )
    return wanted or known[0]


def _labelled(shard_set: ShardSet, rows: np.ndarray, label_set: str) -> tuple[Labelled, dict[str, int]]:
    from cardialign.pretrain.evaluation.task import decided_records

    ages = shard_set.age_years[rows].astype(np.float64)
    if not label_set:
        none = np.zeros((len(rows), 0), dtype=bool)
        return Labelled(none, np.zeros(len(rows), dtype=bool), ages, shard_set.patients[rows], ()), {}
    codes, truth, labelled = shard_set.labels(rows, label_set)
    words = _words_of(label_set)
    names = tuple((code, words.get(code, code)) for code in codes)
    decided = decided_records(shard_set, rows, label_set, codes)
    left = {} if decided is None else {code: int((~decided[:, c]).sum()) for c, code in enumerate(codes)}
    about = Labelled(truth, labelled, ages, shard_set.patients[rows], names)
    return about, {code: count for code, count in left.items() if count}


def _words_of(label_set: str) -> dict[str, str]:
    """Code -> words of the class, from the newest prompt set of ours that answers to the label set."""
    found: dict[str, str] = {}
    for name in prompt_set_names():
        try:
            prompts = load_prompts(name)
        except UsageError:  # a set of another package that is broken gives no names, and is no matter of a map
            continue
        if prompts.label_set == label_set:
            found |= {each.code: each.name for each in prompts.classes}
    return found


def _shown(about: Labelled, classes: Sequence[str] | None, label_set: str) -> tuple[int, ...]:
    codes, counts = [code for code, _ in about.names], about.truth.sum(axis=0)
    if classes is None:
        order = np.argsort(-counts, kind="stable")[:COLOURS]
        return tuple(int(c) for c in order if counts[c])
    unknown = [code for code in classes if code not in codes]
    if unknown:
        raise UsageError(
            f"label set {label_set} has no class {', '.join(unknown)[:100]}", f"choose from: {', '.join(codes)}"
        )
    if len(set(classes)) > COLOURS:
        raise UsageError(
            f"{len(set(classes))} classes are to be coloured",
            f"name at most {COLOURS}: more cannot be told apart; the page shows every class on its own, too",
        )
    return tuple(dict.fromkeys(codes.index(code) for code in classes))
