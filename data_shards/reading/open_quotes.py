"""Rows of a table that one field swallowed: behind a quotation mark that is opened by mistake, a reader takes the
separators and line ends that follow for text, until the next mark."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from io import BufferedReader
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.files import open_regular
from cardialign.data_shards.reading.plain_files import Unpacked

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_DIGITS = re.compile(r"\d+")


def judge_quotes(path: Path, rows: pa.Table | pa.RecordBatch) -> None:
    """Judge some rows of a table, their columns as strings in the order of the file or of the reader.

    Raises DataError where the last field holds the rest of the file because its quotation mark is never closed. Warns
    of fields with line ends behind which stands what looks like another row.
    """
    if not rows.num_rows:
        return
    columns = {name: _as_strings(rows.column(name)) for name in rows.schema.names}
    long = {name: pc.filter(column, pc.match_substring(column, "\n")).to_pylist() for name, column in columns.items()}
    if not any(long.values()):
        return
    for name, column in columns.items():
        last = column[-1].as_py() or ""
        if "\n" in last and _ends_with(path, last.rstrip("\r\n").splitlines()[-1]):
            raise DataError(
                f"{path}: a quotation mark is opened and never closed in column {name!r}, at "
                f"{last.splitlines()[0]!r:.80}: all rows after it would be one field",
                "close the mark, or remove it",
            )
    shapes = {_shape(value) for column in columns.values() for value in column.slice(0, 1000).to_pylist() if value}
    swallowed = [
        line
        for name, fields in long.items()
        for field in fields
        for line in field.splitlines()[1:]
        if line.count(",") + 1 >= max(2, len(columns)) and _shape(line.partition(",")[0]) in shapes
    ]
    if swallowed:
        log.warning(
            "fields with other rows in them table=%s rows=%d: %s; is a quotation mark before them opened by mistake?",
            path.name,
            len(swallowed),
            "; ".join(repr(line[:60]) for line in swallowed[:3]),
        )


def _as_strings(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def _shape(word: str) -> str:
    """`JS00017` and `JS20391` are alike, and so are all whole numbers."""
    return _DIGITS.sub("0", word.strip(' "'))


def _ends_with(path: Path, words: str) -> bool:
    """Whether a file ends with these words, line ends and a closing quotation mark not counted for them."""
    end = b""
    with contextlib.closing(_to_its_end(path)) as file:
        while chunk := file.read(_CHUNK):
            end = (end + chunk)[-_CHUNK:]
    return end.decode("utf-8", "replace").rstrip("\r\n").endswith(words)


def _to_its_end(path: Path) -> Unpacked | BufferedReader:
    """The last bytes of a file; of a packed one all of them, within the limit of packed tables."""
    if path.suffix == ".gz":
        return Unpacked(path)
    file = os.fdopen(open_regular(path), "rb")
    file.seek(max(0, path.stat().st_size - _CHUNK))
    return file
