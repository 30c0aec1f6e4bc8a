"""Joining large tables by id through numbers: a few bytes per row stay in memory, whatever the ids look like."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def id_numbers(ids: pa.Array) -> np.ndarray:
    """Ids as text -> int64 that are equal where the texts are. Whole numbers as one writes them stand for themselves; anything else becomes a 63-bit
    digest below zero, which two different ids of two million share with the odds of 1 in 4 million."""
    ids = pc.fill_null(ids, "")
    try:
        numbers = pc.cast(ids, pa.int64())
        if pc.all(pc.and_(pc.equal(pc.cast(numbers, pa.string()), ids), pc.greater_equal(numbers, 0)), min_count=0).as_py():
            return numbers.to_numpy()
    except pa.ArrowInvalid:
        pass
    return np.array([_id_number(each) for each in ids.to_pylist()], dtype=np.int64)


def _id_number(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 19 and (text == "0" or text[0] != "0"):
        return int(text)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True) | -(1 << 63)


class IdRows:
    """Which row of a table has an id: 12 bytes a row. `repeated`: rows whose id stands in an earlier row, which is the one that counts."""

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
