"""Which records of a shard set are meant: by fold, report, label set, key and split; and the labels that the records
carry."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.shard_set.index import IndexFile
from cardialign.data_shards.shard_set.splits import SplitRule, in_split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """Rows of a shard set, ascending int64, and a fingerprint of the set, the criteria and the rows."""

    rows: np.ndarray
    fingerprint: str


@dataclass(frozen=True)
class Criteria:
    """What a record must meet to be selected. None asks nothing.

    folds: sorted, one of them; label_set: be labelled in it; keys: be one of them; split: its patient be in that part.
    """

    folds: Sequence[int] | None = None
    require_report: bool = False
    label_set: str | None = None
    keys: Sequence[str] | None = None
    split: SplitRule | None = None

    def described(self) -> list[Any]:
        """What the fingerprint of a selection is made of; JSON-able."""
        keys = None if self.keys is None else sorted(self.keys)
        plain: list[Any] = [self.folds, self.require_report, self.label_set, keys]
        return plain if self.split is None else [*plain, [self.split.split, self.split.salt, self.split.fractions]]


class Labels:
    """The labels of all records of an index, read when they are first asked for."""

    def __init__(self, index: IndexFile) -> None:
        self._index = index

    @cached_property
    def _pairs(self) -> list[tuple[str, str, np.ndarray]]:
        return _label_pairs(self._index.arrow("labels").combine_chunks())

    @property
    def names(self) -> tuple[str, ...]:
        """The label sets that occur."""
        return tuple(sorted({name for name, _, _ in self._pairs}))

    def labelled(self, label_set: str) -> np.ndarray:
        """bool (records,): labelled in this set at all, be it with none of its codes.

        Raises DataError for an unknown label set.
        """
        if label_set not in self.names:
            raise DataError(
                f"{self._index.path.parent} has no label set {label_set!r}",
                f"label sets present: {', '.join(self.names) or 'none (build with labels)'}",
            )
        labelled = np.zeros(self._index.records, dtype=bool)
        for name, _, rows in self._pairs:
            if name == label_set:
                labelled[rows] = True
        return labelled

    def matrix(self, rows: np.ndarray, label_set: str) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Codes of the label set (sorted, over the whole set), bool (n, C), and bool (n,): labelled in this set at all.

        Raises DataError for an unknown label set.
        """
        labelled = self.labelled(label_set)
        pairs = sorted((code, holders) for name, code, holders in self._pairs if name == label_set and code)
        matrix = np.zeros((self._index.records, len(pairs)), dtype=bool)
        for column, (_, holders) in enumerate(pairs):
            matrix[holders, column] = True
        return [code for code, _ in pairs], matrix[rows], labelled[rows]


def select(index: IndexFile, labels: Labels, fingerprint: str, criteria: Criteria) -> Selection:
    """The rows of an index that meet every criterion; fingerprint: of its shard set.

    Raises DataError when a key or label set does not exist, or nothing is left.
    """
    keep = np.ones(index.records, dtype=bool)
    if criteria.folds is not None:
        there = index.column("fold", np.int16)
        keep &= np.isin(there, criteria.folds)
        _tell_absent(str(index.path.parent), tuple(np.setdiff1d(criteria.folds, there).tolist()))
    if criteria.require_report:
        keep &= index.column("report", np.int32) >= 0
    if criteria.label_set is not None:
        keep &= labels.labelled(criteria.label_set)
    if criteria.keys is not None:
        keep &= _with_keys(index, criteria.keys)
    if criteria.split is not None:
        keep &= _in_split(index, criteria.split)
    rows = np.flatnonzero(keep).astype(np.int64, copy=False)
    if rows.size == 0:
        raise _nothing_left(index, labels, criteria)
    digest = hashlib.sha256(json.dumps([fingerprint, *criteria.described()]).encode())
    digest.update(rows.astype("<i8", copy=False).data)  # no copy: ten million rows are 80 MB
    return Selection(rows, digest.hexdigest())


@lru_cache(maxsize=256)  # a run selects in many places
def _tell_absent(folder: str, folds: tuple[int, ...]) -> None:
    if folds:
        log.warning("shards=%s folds=%s remark=no record is in them", folder, ",".join(map(str, folds)))


def _with_keys(index: IndexFile, keys: Sequence[str]) -> np.ndarray:
    found = pc.index_in(pa.array(list(keys), pa.string()), value_set=index.arrow("key").combine_chunks())
    if found.null_count:
        unknown = [key for key, row in zip(keys, found.to_pylist(), strict=True) if row is None]
        raise DataError(
            f"{index.path.parent} has no record {unknown[0]!r} ({len(unknown)} of {len(keys)} keys are unknown)",
            "check the keys",
        )
    chosen = np.zeros(index.records, dtype=bool)
    chosen[found.to_numpy()] = True
    return chosen


def _in_split(index: IndexFile, rule: SplitRule) -> np.ndarray:
    """bool (records,); a record without a patient id is dealt by its key, as a patient of its own."""
    encoded = index.arrow("patient").combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    held = in_split(names, rule)[encoded.indices.to_numpy()]
    if "" in names:
        unknown = np.flatnonzero(encoded.indices.to_numpy() == names.index(""))
        keys = index.arrow("key").take(unknown).to_pylist()
        held[unknown] = in_split([f"record:{key}" for key in keys], rule)
    return held


def _nothing_left(index: IndexFile, labels: Labels, criteria: Criteria) -> DataError:
    folds = ", ".join(map(str, np.unique(index.column("fold", np.int16))))
    reports = int((index.column("report", np.int32) >= 0).sum())
    return DataError(
        f"no record of {index.path.parent} {' and '.join(_asked(criteria)) or 'is there'}",
        f"folds present: {folds}; label sets present: {', '.join(labels.names) or 'none'}; "
        f"records with a report: {reports}",
    )


def _asked(criteria: Criteria) -> list[str]:
    """What a record was asked for, as the ends of a sentence."""
    folds = criteria.folds or ()
    return [
        words
        for asked, words in (
            (folds, f"is in fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"),
            (criteria.split, f"is of the part {criteria.split.split if criteria.split else ''}"),
            (criteria.label_set, f"is labelled in {criteria.label_set!r}"),
            (criteria.keys is not None, "has one of the keys"),
            (criteria.require_report, "has a report"),
        )
        if asked
    ]


def _label_pairs(column: pa.ListArray) -> list[tuple[str, str, np.ndarray]]:
    """(label set, code, rows) of every label; the code "" marks a row that is labelled and to which no code applies."""
    encoded = column.flatten().dictionary_encode()
    row_of = pc.list_parent_indices(column).to_numpy()
    codes = encoded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
    names = [label.partition(":") for label in encoded.dictionary.to_pylist()]
    return [
        (name, code, row_of[order[bounds[i] : bounds[i + 1]]].astype(np.int64))
        for i, (name, _, code) in enumerate(names)
    ]
