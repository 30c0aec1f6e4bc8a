"""Joining large tables by id through numbers: a few bytes per row stay in memory, whatever the ids look like."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cardialign.data_shards.sources.shared.ids import plain_id

_T = TypeVar("_T")
_LARGE = 10**18
"""Whole numbers from here on are no numbers to us: not all of them fit."""
NO_ID = -(1 << 63)
"""Stands where no id is; it equals no id, not even another of its kind."""
STRETCH = 1024
"""Rows that are looked up or packed together."""


def stretches(values: Iterable[_T], size: int = STRETCH) -> Iterator[list[_T]]:
    """The values in lists of `size`, the last one shorter."""
    each = iter(values)
    while stretch := list(islice(each, size)):
        yield stretch


def id_numbers(ids: pa.Array, letter: str = "") -> np.ndarray:
    """Ids as text -> int64 that are equal where the ids are, however they are written (`ids.plain_id`); NO_ID for none.

    Whole numbers stand for themselves; anything else becomes a 63-bit digest below zero, which two different ids of two
    million share with the odds of 1 in 4 million. letter: as `plain_id` takes it.
    """
    ids = pc.fill_null(ids, "")
    numbers = _whole_numbers(ids)
    if numbers is None and not letter:  # whole columns as floats need no look at each
        numbers = _whole_numbers(pc.replace_substring_regex(ids, r"^\s*([0-9]+)\.0*\s*$", r"\1"))
    if numbers is not None:
        return numbers
    return np.array([_id_number(plain_id(each, letter)) for each in ids.to_pylist()], dtype=np.int64)


def _whole_numbers(ids: pa.Array) -> np.ndarray | None:
    try:
        numbers = pc.cast(ids, pa.int64())
    except pa.ArrowInvalid:
        return None
    plain = pc.cast(numbers, ids.type).equals(ids)
    odd = pc.any(pc.or_(pc.less(numbers, 0), pc.greater_equal(numbers, _LARGE))).as_py()
    return numbers.to_numpy() if plain and not odd else None


def _id_number(text: str) -> int:
    if not text:
        return NO_ID
    if text.isascii() and text.isdigit() and (text == "0" or text[0] != "0") and len(text) < 19:
        return int(text)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return max(int.from_bytes(digest, signed=True) | -(1 << 63), NO_ID + 1)


def _encodable(name: str) -> str:
    """A name with bytes that are no UTF-8 is that of no row; it must not end the look-up of the others."""
    return name if name.isascii() else name.encode("utf-8", "replace").decode("utf-8")


class IdRows:
    """Which row of a table has an id: 12 bytes a row.

    `repeated`: rows whose id stands in an earlier row, which is the one that counts. `distinct`: ids in the table.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        ids = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        order = np.argsort(ids, kind="stable").astype(np.int32)
        self._ids, self._rows = ids[order], order
        named = self._ids != NO_ID
        self.repeated = int(np.count_nonzero((self._ids[1:] == self._ids[:-1]) & named[1:]))
        self.distinct = int(np.count_nonzero(named)) - self.repeated

    def __len__(self) -> int:
        return self._ids.size

    def find(self, ids: np.ndarray) -> np.ndarray:
        """First row of each id, -1 for one that the table lacks."""
        if not len(self):
            return np.full(ids.size, -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._ids, ids), len(self) - 1)
        return np.where((self._ids[at] == ids) & (ids != NO_ID), self._rows[at], -1)

    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """First row of every distinct id, and in how many rows the id stands."""
        starts = self._starts()
        times = np.diff(starts, append=len(self))
        named = self._ids[starts] != NO_ID
        return self._rows[starts][named], times[named]

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows whose id stands in an earlier row, and the first row of that id."""
        starts = self._starts()
        firsts = np.repeat(self._rows[starts], np.diff(starts, append=len(self)))
        again = (firsts != self._rows) & (self._ids != NO_ID)
        return self._rows[again], firsts[again]

    def ids_of(self, rows: Sequence[int]) -> list[int]:
        """What `id_numbers` made of the ids of these rows; to name a few."""
        return [int(self._ids[np.flatnonzero(self._rows == row)[0]]) for row in rows]

    def _starts(self) -> np.ndarray:
        first = np.ones(min(len(self), 1), dtype=bool)
        return np.flatnonzero(np.concatenate([first, self._ids[1:] != self._ids[:-1]]))


class TextRows:
    """Rows of text, found by the id in one of their columns: in memory as packed text, and 12 bytes a row.

    Of rows with one id the first counts.

    names: all columns; id_name: the one with the id.
    """

    def __init__(self, rows: Iterable[Mapping[str, str]], names: Sequence[str], id_name: str) -> None:
        self._id_name = id_name
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
        return self._rows.find(id_numbers(pa.array([_encodable(each) for each in ids], pa.string())))

    def take(self, rows: np.ndarray) -> list[dict[str, str] | None]:
        """The rows of these numbers, None for -1."""
        found = np.flatnonzero(rows >= 0)
        result: list[dict[str, str] | None] = [None] * rows.size
        for at, row in zip(found.tolist(), self._texts.take(pa.array(rows[found])).to_pylist(), strict=True):
            result[at] = row
        return result

    @property
    def distinct(self) -> int:
        return self._rows.distinct

    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """As `IdRows.runs`."""
        return self._rows.runs()

    def contradicting(self) -> list[str]:
        """Ids that stand in several rows which do not say the same, each once."""
        rows, firsts = self._rows.pairs()
        blank = dict.fromkeys([self._id_name], "")
        found: dict[str, None] = {}
        for some in stretches(zip(rows.tolist(), firsts.tolist(), strict=True)):
            ours, theirs = (self.take(np.array(side)) for side in zip(*some, strict=True))
            for one, other in zip(ours, theirs, strict=True):
                if one is not None and other is not None and one | blank != other | blank:
                    found[other[self._id_name]] = None
        return list(found)
