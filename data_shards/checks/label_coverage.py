"""What a label set cannot say: codes of its records that stand for none of its classes, classes that it lacks, and
classes that a record's codes leave open.

Label sets such as `chapman` are made of the codes in another set (`snomed`) by a table of this release; the index of a
shard set holds what the table of its own time made of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.vocabularies import snomed

CODES = "snomed"


@dataclass(frozen=True)
class LabelCoverage:
    """unknown: code and name -> records that have it, though it stands for no class, most frequent first.

    outdated: class -> records that have a code of it and not the class, because an older table made the set.
    undecided: class -> records that do not have it, and have a code that does not exclude it (`open_classes`).
    """

    unknown: dict[str, int] = field(default_factory=dict)
    outdated: dict[str, int] = field(default_factory=dict)
    undecided: dict[str, int] = field(default_factory=dict)


def open_classes(shards: ShardSet, rows: np.ndarray, label_set: str) -> dict[str, np.ndarray]:
    """Class of a label set that is made of codes -> bool (n,): the record's codes neither state nor exclude it ("ST
    changes" for ST elevation), so that it is no negative. Classes that are open nowhere are left out."""
    table = snomed.left_open(label_set)
    if not table or not {label_set, CODES} <= set(shards.label_sets):
        return {}
    codes, has, _ = shards.labels(rows, CODES)
    classes, marked, _ = shards.labels(rows, label_set)
    column = {name: k for k, name in enumerate(classes)}
    found: dict[str, np.ndarray] = {}
    for k, code in enumerate(codes):
        for name in table.get(code, ()):
            without = has[:, k] & ~marked[:, column[name]] if name in column else has[:, k]
            found[name] = found.get(name, np.zeros(len(rows), dtype=bool)) | without
    for k, code in enumerate(codes):  # a code of the class states it, whatever an older table made of it
        for name in snomed.LABEL_SETS[label_set].get(code, ()):
            if name in found:
                found[name] = found[name] & ~has[:, k]
    return {name: some for name, some in sorted(found.items()) if some.any()}


def label_coverage(shards: ShardSet, rows: np.ndarray, label_set: str) -> LabelCoverage:
    """Coverage of these rows; nothing to say of a label set that is not made of codes."""
    table = snomed.LABEL_SETS.get(label_set)
    if table is None or not {label_set, CODES} <= set(shards.label_sets):
        return LabelCoverage()
    codes, has, _ = shards.labels(rows, CODES)
    classes, marked, _ = shards.labels(rows, label_set)
    records = has.sum(axis=0)
    order = np.argsort(-records, kind="stable")
    unknown = {
        " ".join(filter(None, (codes[k], snomed.ABBREVIATIONS.get(codes[k])))): int(records[k])
        for k in order
        if codes[k] not in table and records[k]
    }
    column = {name: k for k, name in enumerate(classes)}
    lacking: dict[str, np.ndarray] = {}
    for k, code in enumerate(codes):
        for name in table.get(code, ()):
            unmarked = has[:, k] & ~marked[:, column[name]] if name in column else has[:, k]
            lacking[name] = lacking.get(name, np.zeros(len(rows), dtype=bool)) | unmarked
    counts = {name: int(some.sum()) for name, some in lacking.items()}
    undecided = {name: int(some.sum()) for name, some in open_classes(shards, rows, label_set).items()}
    return LabelCoverage(unknown, {name: count for name, count in sorted(counts.items()) if count}, undecided)
