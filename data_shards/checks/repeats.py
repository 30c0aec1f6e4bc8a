"""The very same recording more than once: two files of it in one set, or two sets of a mixture that both hold it.

Its copies stand under keys and perhaps patients of their own, so that nothing else keeps them out of one batch, or out
of training and test. They are found by what the index says (equal size, equal checksum), and then compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cardialign.data_shards.shard_set.shard_set import ShardSet

LOOKED_AT = 1000
"""Groups of copies whose bytes are compared; a checksum of 32 bits alone may be shared by chance."""


@dataclass(frozen=True)
class Repeats:
    """Copies among the records that were compared.

    records: those beyond the first of their recording. patients, folds: recordings that stand under more than one of
    them. examples: the keys of some copies.
    """

    records: int
    patients: int
    folds: int
    examples: tuple[tuple[str, ...], ...]


def find_repeats(sets: Sequence[ShardSet], rows: Sequence[np.ndarray] | None = None) -> Repeats:
    """Records of `sets` (of each its rows, default all) that hold equal payloads. Raises DataError and StorageError as
    `ShardSet.read_payload` does."""
    rows = [np.arange(len(each)) for each in sets] if rows is None else rows
    pairs = list(zip(sets, rows, strict=True))
    names = np.concatenate([each.crc32[r].astype(np.int64) << 31 | each.size[r] for each, r in pairs])
    owner = np.repeat(np.arange(len(sets)), [len(r) for r in rows])
    every = np.concatenate(rows)
    order = np.argsort(names, kind="stable")
    starts = np.flatnonzero(np.diff(names[order], prepend=names[order[:1]] + 1))
    records = patients = folds = 0
    examples: list[tuple[str, ...]] = []
    ends = np.append(starts, len(order))[1:]
    several = ends - starts > 1
    for start, end in list(zip(starts[several], ends[several], strict=True))[:LOOKED_AT]:
        group = order[start:end]
        held = [(sets[owner[at]], int(every[at])) for at in group]
        payloads = [each.read_payload(row) for each, row in held]
        copies = [place for place, payload in zip(held, payloads, strict=True) if payload == payloads[0]]
        if len(copies) < 2:
            continue
        records += len(copies) - 1
        patients += len({(id(each), int(each.patients[row])) for each, row in copies}) > 1
        folds += len({int(each.fold[row]) for each, row in copies}) > 1
        examples.append(tuple(each.key(row) for each, row in copies[:3]))
    return Repeats(records, patients, folds, tuple(examples[:3]))
