"""The table of distinct reports, made along one pass over a set's records: numbers stay in memory, texts go through a
file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cardialign.data_shards.report_text import join_statements, report_key

REPORT_SCHEMA = pa.schema(
    [
        ("report", pa.int32()),
        ("key", pa.string()),
        ("statements", pa.list_(pa.string())),
        ("text", pa.string()),
        ("count", pa.int32()),
    ]
)
_TEXTS = pa.schema([REPORT_SCHEMA.field(name) for name in ("key", "statements", "text")])
ROW_GROUP = 1 << 16
"""Rows that are in memory while the table is written, at some 0.3 KB each."""


class ReportTable:
    """Distinct reports in the order of their first appearance; two spellings that differ in case only are one report.

    In memory: 16 bytes per distinct report (28 while they are sorted in). `scratch`: a file for their texts, removed at
    the end of the `with`.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._numbers = FirstSeen()
        self._counts = np.zeros(1024, dtype=np.int32)
        self._file = scratch.open("wb")
        self._texts = pa.ipc.new_stream(self._file, _TEXTS)

    def __enter__(self) -> ReportTable:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk refuses the last buffered bytes; they are dropped anyway
            self._file.close()
        self._scratch.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, reports: Sequence[Sequence[str]]) -> np.ndarray:
        """int32: row of each of these reports, -1 for an empty one."""
        rows = np.full(len(reports), -1, dtype=np.int32)
        told = [place for place, statements in enumerate(reports) if statements]
        if not told:
            return rows
        keys = [report_key(reports[place]) for place in told]
        before = len(self)
        found = self._numbers.add(np.array([int(key, 16) for key in keys], dtype=np.uint64))
        rows[told] = found
        if len(self) > self._counts.size:
            self._counts = np.concatenate([self._counts, np.zeros(max(self._counts.size, len(self)), dtype=np.int32)])
        np.add.at(self._counts, found, 1)
        if len(self) > before:
            firsts = np.unique(found, return_index=True)[1][-(len(self) - before) :]
            statements = [list(reports[told[at]]) for at in firsts.tolist()]
            columns = [[keys[at] for at in firsts.tolist()], statements, [join_statements(each) for each in statements]]
            self._texts.write_batch(
                pa.record_batch(
                    [pa.array(column, field.type) for column, field in zip(columns, _TEXTS, strict=True)], schema=_TEXTS
                )
            )
        return rows

    def write(self, path: Path) -> None:
        """Write the table as Parquet. Nothing can be added afterwards."""
        self._texts.close()
        self._file.close()
        at = 0
        with pq.ParquetWriter(
            path, REPORT_SCHEMA, compression="zstd", store_schema=True, write_page_checksum=True
        ) as writer:
            for texts in self._groups():
                end = at + texts.num_rows
                numbers = {"report": np.arange(at, end, dtype=np.int32), "count": self._counts[at:end]}
                columns = {name: pa.array(values) for name, values in numbers.items()} | dict(
                    zip(_TEXTS.names, texts.columns, strict=True)
                )
                writer.write_table(
                    pa.table(columns).select(REPORT_SCHEMA.names).cast(REPORT_SCHEMA), row_group_size=ROW_GROUP
                )
                at = end

    def _groups(self) -> Iterator[pa.Table]:
        """Texts in the order of their rows, `ROW_GROUP` at a time; one empty table when there is none."""
        with pa.OSFile(str(self._scratch), "rb") as file, pa.ipc.open_stream(file) as stream:
            waiting = pa.Table.from_batches([], _TEXTS)
            for batch in stream:
                waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
                while waiting.num_rows > ROW_GROUP:
                    yield waiting.slice(0, ROW_GROUP).combine_chunks()
                    waiting = waiting.slice(ROW_GROUP)
            yield waiting.combine_chunks()


class FirstSeen:
    """Numbers 64-bit digests 0, 1, 2 ... in the order of their first appearance, at 12 bytes each.

    Kept as sorted runs, each more than twice as long as the next: a look-up searches few runs, and a digest is moved
    seldom.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, digests: np.ndarray) -> np.ndarray:
        """digests (n,) uint64 -> their numbers (n,) int32."""
        numbers = np.full(digests.size, -1, dtype=np.int32)
        for known, numbered in self._runs:
            at = np.minimum(np.searchsorted(known, digests), known.size - 1)
            hit = known[at] == digests
            numbers[hit] = numbered[at[hit]]
        new = np.flatnonzero(numbers < 0)
        if new.size:
            fresh, first, which = np.unique(digests[new], return_index=True, return_inverse=True)
            numbered = np.empty(fresh.size, dtype=np.int32)
            numbered[np.argsort(first)] = np.arange(self._size, self._size + fresh.size, dtype=np.int32)
            numbers[new] = numbered[which]
            self._size += fresh.size
            self._runs.append((fresh, numbered))
            while len(self._runs) > 1 and self._runs[-2][0].size <= 2 * self._runs[-1][0].size:
                self._merge_last_two()
        return numbers

    def _merge_last_two(self) -> None:
        (longer, longer_numbers), (shorter, shorter_numbers) = self._runs[-2:]
        at = np.searchsorted(longer, shorter)
        merged = np.insert(longer, at, shorter)
        self._runs[-2:] = [(merged, np.insert(longer_numbers, at, shorter_numbers))]
