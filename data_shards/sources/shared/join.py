"""Joining large tables by id through numbers: a few bytes per row stay in memory, whatever the ids look like."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_T = TypeVar("_T")
_LARGE = 10**18
"""Whole numbers from here on are no numbers to us: not all of them fit."""
STRETCH = 1024
"""Rows that are looked up or packed together."""


def stretches(values: Iterable[_T], size: int = STRETCH) -> Iterator[list[_T]]:
    """The values in lists of `size`, the last one shorter."""
    each = iter(values)
    while stretch := list(islice(each, size)):
        yield stretch


def id_numbers(ids: pa.Array) -> np.ndarray:
    """Ids as text -> int64 that are equal where the texts are.

    Whole numbers as one writes them stand for themselves; anything else becomes a 63-bit digest below zero, which two
    different ids of two million share with the odds of 1 in 4 million.
    """
    ids = pc.fill_null(ids, "")
    try:
        numbers = pc.cast(ids, pa.int64())
        if (
            pc.cast(numbers, ids.type).equals(ids)
            and not pc.any(pc.or_(pc.less(numbers, 0), pc.greater_equal(numbers, _LARGE))).as_py()
        ):
            return numbers.to_numpy()
    except pa.ArrowInvalid:
        pass
    return np.array([_id_number(each) for each in ids.to_pylist()], dtype=np.int64)


def _id_number(text: str) -> int:
    if text.isascii() and text.isdigit() and (text == "0" or text[0] != "0") and len(text) < 19:
        return int(text)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True) | -(1 << 63)


class IdRows:
    """Which row of a table has an id: 12 bytes a row.

    `repeated`: rows whose id stands in an earlier row, which is the one that counts.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        ids = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        order = np.argsort(ids, kind="stable").astype(np.int32)
        self._ids, self._rows = ids[order], order
        self.repeated = int(np.count_nonzero(self._ids[1:] == self._ids[:-1]))

    def __len__(self) -> int:
        return self._ids.size

    def find(self, ids: np.ndarray) -> np.ndarray:
        """First row of each id, -1 for one that the table lacks."""
        if not len(self):
            return np.full(ids.size, -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._ids, ids), len(self) - 1)
        return np.where(self._ids[at] == ids, self._rows[at], -1)

    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """First row of every distinct id, and in how many rows the id stands."""
        starts = np.flatnonzero(
            np.concatenate([np.ones(min(len(self), 1), dtype=bool), self._ids[1:] != self._ids[:-1]])
        )
        return self._rows[starts], np.diff(starts, append=len(self))


class TextRows:
    """Rows of text, found by the id in one of their columns: in memory as packed text, and 12 bytes a row.

    Of rows with one id the first counts.

    names: all columns; id_name: the one with the id.
    """

    def __init__(self, rows: Iterable[Mapping[str, str]], names: Sequence[str], id_name: str) -> None:
        self._schema = pa.schema([(name, pa.large_string()) for name in names])
        parts = [pa.RecordBatch.from_pylist(list(stretch), schema=self._schema) for stretch in stretches(rows)]
        self._texts = pa.Table.from_batches(
            parts, schema=self._schema
        ).combine_chunks()  # `take` would join the chunks each time
        self.ids = self._texts.column(id_name)
        self._rows = IdRows([id_numbers(chunk) for chunk in self.ids.chunks])

    def __len__(self) -> int:
        return self._texts.num_rows

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """Row of each id, -1 for one that is not there."""
        return self._rows.find(id_numbers(pa.array(ids, pa.string())))

    def take(self, rows: np.ndarray) -> list[dict[str, str] | None]:
        """The rows of these numbers, None for -1."""
        found = np.flatnonzero(rows >= 0)
        result: list[dict[str, str] | None] = [None] * rows.size
        for at, row in zip(found.tolist(), self._texts.take(pa.array(rows[found])).to_pylist(), strict=True):
            result[at] = row
        return result

    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """As `IdRows.runs`."""
        return self._rows.runs()
