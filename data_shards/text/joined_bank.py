"""The text banks of a mixture's shard sets as one: read like the bank of a single set, in the report ids of
`JoinedSets`.

Reports and statements mean the same across sets: a statement has one id wherever it occurs (letter case aside), and
equal reports of different sets have one key. The mean is that of all records of all sets, as if they had been built as
one set; the weights of the mixture do not enter it. R_k reports of set k, width d.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.text.bank import TextBank
from cardialign.data_shards.text.similarity import principal_axes

_SAME = ("encoder_fingerprint", "style", "max_tokens", "dim", "cleaning_version")


class JoinedRows:
    """Arrays (R_k, d), memory-mapped and one after the other, read by row numbers; nothing is copied but the rows asked
    for."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = tuple(arrays)
        self._starts = np.cumsum([0, *map(len, arrays)])
        self.shape = (int(self._starts[-1]), *arrays[0].shape[1:])
        self.dtype = arrays[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        out = np.empty((rows.size, *self.shape[1:]), dtype=self.dtype)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(owner):
            mine = owner == number
            out[mine] = self._arrays[number][rows[mine] - self._starts[number]]
        return out


class JoinedBank(TextBank):
    """One bank of several; banks[k] belongs to sets.sets[k]. Report ids are those of `JoinedSets.report`.

    Everything is read as from a `TextBank`, except that the principal axes are found when they are first asked for.
    Raises DataError for banks of different encoders, styles or cleanings, and for a bank whose reports are not those of
    its set.
    """

    def __init__(self, sets: JoinedSets, banks: Sequence[TextBank]) -> None:
        for other in banks[1:]:
            differing = [name for name in _SAME if other.description[name] != banks[0].description[name]]
            if differing:
                raise DataError(
                    f"text banks {banks[0].path} and {other.path} differ in {', '.join(differing)}",
                    "run `cardialign text-bank build` for every set of the mixture with the same encoder, token limit "
                    "and style",
                )
        tables = [each.report_columns(["key", "count"]) for each in sets.sets]
        for each, bank, table in zip(sets.sets, banks, tables, strict=True):
            bound = bank.description["shards"], bank.description.get("overlay")
            if bound != (each.fingerprint, each.overlay_digest) or table.num_rows != len(bank):
                raise DataError(
                    f"text bank {bank.path} does not belong to shard set {each.path}",
                    "run `cardialign text-bank build` anew",
                )
        self.path = banks[0].path
        self.description: dict[str, Any] = {name: banks[0].description[name] for name in ("version", "encoder", *_SAME)}
        self.digest = hashlib.sha256(json.dumps([bank.digest for bank in banks]).encode()).hexdigest()
        self._banks = tuple(banks)
        self.description |= {
            "shards": sets.fingerprint,
            "reports": sum(map(len, banks)),
            "parts": [str(bank.path) for bank in banks],
        }
        # Read by rows only, which is all that a bank's readers do; joining them would copy what is memory-mapped.
        self.embeddings = cast(np.ndarray, JoinedRows([bank.embeddings for bank in banks]))
        self.token_ids = cast(np.ndarray, JoinedRows([bank.token_ids for bank in banks]))
        self.lengths = np.concatenate([bank.lengths for bank in banks])
        records = np.array([pc.sum(table["count"]).as_py() for table in tables], dtype=np.float64)
        means = np.stack([bank.mean for bank in banks]).astype(np.float64)
        self.mean = (records @ means / records.sum()).astype(np.float32)
        self._keys = _first_of_each(
            pa.chunked_array([chunk for table in tables for chunk in table["key"].chunks], pa.string())
        )
        self._join_statements(banks)

    def check_contents(self) -> None:
        """As of a single bank, for every one of them."""
        for bank in self._banks:
            bank.check_contents()

    def _join_statements(self, banks: Sequence[TextBank]) -> None:
        known: dict[str, int] = {}
        self._spelled: list[str] = []
        self._numbers: list[np.ndarray] = []
        indptrs, ids = [np.zeros(1, dtype=np.int64)], []
        for bank in banks:
            spelled = bank.statements
            for statement in spelled:
                if known.setdefault(statement.casefold(), len(known)) == len(self._spelled):
                    self._spelled.append(statement)
            numbers = np.array([known[statement.casefold()] for statement in spelled], dtype=np.int32)
            self._numbers.append(numbers)
            indptr, own = bank.statement_sets(np.arange(len(bank)))
            renumbered = numbers[own]
            report = np.repeat(np.arange(len(bank)), np.diff(indptr))
            ids.append(renumbered[np.lexsort((renumbered, report))])  # ascending within each report
            indptrs.append(indptr[1:] + indptrs[-1][-1])
        self._indptr, self._ids = np.concatenate(indptrs), np.concatenate(ids)

    @property
    def statements(self) -> list[str]:
        """The distinct statements of all sets (by case-folded text); position = statement id."""
        return self._spelled

    def statement_vectors(self) -> np.ndarray:
        """As of a single bank; a statement of several sets as the first of them spells it."""
        vectors = np.empty((len(self._spelled), self.dim), dtype=np.float32)
        for bank, numbers in reversed(list(zip(self._banks, self._numbers, strict=True))):
            vectors[numbers] = bank.statement_vectors()
        return vectors

    def distant(self, k: int) -> np.ndarray:
        """As of a single bank, within the set that a report is of; as many as the smallest set has."""
        tables = [bank.distant(k) for bank in self._banks]
        starts, fewest = np.cumsum([0, *map(len, tables)]), min(table.shape[1] for table in tables)
        parts = [table[:, :fewest] + np.int32(start) for table, start in zip(tables, starts[:-1], strict=True)]
        return np.concatenate(parts)

    @cached_property
    def axes(self) -> np.ndarray:  # type: ignore[override]
        """float32 (d, d): principal axes of the centred embeddings of the distinct reports, strongest first."""
        return principal_axes(self, np.unique(self._keys), self.dim)[0]

    def report_keys(self, report_ids: np.ndarray) -> np.ndarray:
        """int64 (b,): equal exactly when two records have the same report (letter case aside), in whichever sets they
        are."""
        return self._keys[self._checked(report_ids)]


def _first_of_each(keys: pa.ChunkedArray) -> np.ndarray:
    """int64 (n,): position of the first key equal to each."""
    codes = keys.combine_chunks().dictionary_encode().indices.to_numpy()
    return np.unique(codes, return_index=True)[1].astype(np.int64)[codes]
