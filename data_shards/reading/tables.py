"""The CSV tables that data sets are published with, plain or .gz: whole, a stretch of rows at a time, or row by row;
every field as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.files import sha256_of
from cardialign.data_shards.reading.open_quotes import judge_quotes
from cardialign.data_shards.reading.plain_files import Unpacked

MISSING = frozenset({"", "nan", "na", "n/a", "<na>", "#n/a", "nat", "none", "null"})
"""What tools write for an empty field (pandas with `na_rep` or `astype(str)`, R, SQL dumps, spreadsheets); in lower
case."""


def check_layout(root: Path, source: str, files: Sequence[str], layout: str) -> None:
    """Raise UserError unless `root` is a folder that holds all `files` (each plain or .gz).

    `layout` says in words what is expected.
    """
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise UserError(f"{source}: the folder {str(root)!r} {found}", f"give the folder that holds {layout}")
    missing = [name for name in files if find_table(root, name) is None]
    if missing:
        raise UserError(
            f"{source}: {', '.join(missing)} not found in {str(root)!r}", f"give the folder that holds {layout}"
        )


def find_table(root: Path, name: str) -> Path | None:
    """`name` or `name`.gz below `root`, None when neither is there."""
    return next((path for path in (root / name, root / f"{name}.gz") if path.is_file()), None)


def read_table(
    path: Path, required: Sequence[str], categorical: Sequence[str] = (), optional: Sequence[str] = ()
) -> pa.Table:
    """The named columns of a CSV (plain or .gz) as strings, an empty field (or a word of MISSING, by which tools write
    one) as null; `categorical` ones dictionary-encoded.

    Raises UserError when the file is not there, DataError when it cannot be parsed or lacks a required column (all of
    them named).
    """
    with _csv_errors(path):
        table = pa_csv.read_csv(
            _source(path), parse_options=_PARSE, convert_options=_conversion(path, required, categorical, optional)
        )
        judge_quotes(path, table)
    return table


def stream_table(
    path: Path, required: Sequence[str], categorical: Sequence[str] = (), optional: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """The same a stretch of rows at a time, for tables that should not be in memory as a whole."""
    with _csv_errors(path):
        conversion = _conversion(path, required, categorical, optional)
        with pa_csv.open_csv(_source(path), parse_options=_PARSE, convert_options=conversion) as reader:
            for batch in reader:
                judge_quotes(path, batch)
                yield batch


def _source(path: Path) -> Any:
    return Unpacked(path) if path.suffix == ".gz" else path


def rows_of(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """The rows of such a table one by one: column -> text, "" for an empty field."""
    for batch in stream_table(path, required, optional=optional):
        names = batch.schema.names
        for values in zip(*(strings(batch, name) for name in names), strict=True):
            yield dict(zip(names, values, strict=True))


def columns_of(path: Path) -> list[str]:
    """The names in the first line of such a table, those that stand there once. Raises as `read_table` does."""
    with _csv_errors(path), pa_csv.open_csv(_source(path), parse_options=_PARSE) as reader:
        present = reader.schema.names
    return [name for name in present if name and present.count(name) == 1]


_PARSE = pa_csv.ParseOptions(newlines_in_values=True)
_NULLS = sorted({form for word in MISSING for form in (word, word.upper(), word.capitalize())} | {"NaN", "NaT"})


def _conversion(
    path: Path, required: Sequence[str], categorical: Sequence[str], optional: Sequence[str]
) -> pa_csv.ConvertOptions:
    with pa_csv.open_csv(_source(path), parse_options=_PARSE) as reader:
        present = reader.schema.names
    absent = [name for name in (*required, *categorical) if name not in present]
    if absent:
        raise _other_columns(path, absent, present)
    wanted = list(dict.fromkeys(name for name in (*required, *categorical, *optional) if name in present))
    twice = [name for name in wanted if present.count(name) > 1]
    if twice:
        raise DataError(
            f"{path} has the column {', '.join(twice)} more than once", "give every column a name of its own"
        )
    others = {_letters(name): name for name in present if name not in {*required, *categorical, *optional}}
    for name in optional:
        if name not in present and _letters(name) and _letters(name) in others:
            raise DataError(
                f"{path} has the column {others[_letters(name)]!r}, and {name!r} is read where it is there: left out, "
                "what it says would be lost",
                f"name it exactly {name!r}, or take it out",
            )
    types = {name: pa.dictionary(pa.int32(), pa.string()) if name in categorical else pa.string() for name in wanted}
    return pa_csv.ConvertOptions(
        column_types=types, include_columns=wanted, null_values=_NULLS, strings_can_be_null=True
    )


def _other_columns(path: Path, absent: Sequence[str], present: Sequence[str]) -> DataError:
    """What a table has instead of the columns that it lacks: another separator, or names that are almost those."""
    other = _other_separator(path, ",".join(present), absent)
    if other is not None:
        return other
    found = f"{path} lacks the columns {', '.join(absent)}; it has {_listed(present)}"
    close = {name: other for name in absent for other in present if _letters(name) == _letters(other)}
    if close:
        meant = ", ".join(f"{other!r} for {name!r}" for name, other in close.items())
        return DataError(found, f"name the columns exactly as they stand in the table: is it {meant}?")
    return DataError(found, "give the table as it was published")


def _other_separator(path: Path, head: str, wanted: Sequence[str] = ()) -> DataError | None:
    """The error for a table whose first line, `head`, is separated by something else than commas."""
    if head.casefold().startswith("sep="):
        return DataError(
            f"{path} begins with {head[:20].strip()!r}, a line for Excel alone",
            "save it with commas, without that line",
        )
    for mark, word in _OTHER_MARKS.items():
        parts = [name.strip(" '\"\t\r\n") for name in head.split(mark)]
        if len(parts) > 1 and ("," not in head or any(name in parts for name in wanted)):
            convert = f"import pandas as p; p.read_csv('IN', sep={mark!r}, dtype=str).to_csv('OUT', index=False)"
            return DataError(
                f"{path} is separated by {word}, not by commas: its columns are {_listed(parts)}",
                f'save it with commas, for example with python -c "{convert}"',
            )
    return None


_OTHER_KINDS = {
    "PK\x03\x04": "an Excel workbook (or another ZIP archive)",
    "\xd0\xcf\x11\xe0": "an Excel workbook of before 2007",
    "PAR1": "a Parquet file",
    "\x1f\x8b": "a gzip file (its name must end with .gz)",
    "SQLite format 3": "an SQLite database",
}
_OTHER_MARKS = {";": "';'", "\t": "tabs", "|": "'|'"}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name[:60] for name in names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")


def _letters(name: str) -> str:
    return "".join(each for each in name.casefold() if each.isalnum())


@contextmanager
def _csv_errors(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise UserError(f"{path} does not exist", "check the path")
    head = _first_line(path)
    if head.startswith(("\xff\xfe", "\xfe\xff")):
        raise DataError(f"{path} is a table in UTF-16", "save it in UTF-8 with commas")
    kind = next((kind for start, kind in _OTHER_KINDS.items() if head.startswith(start)), None)
    if kind is not None:  # its bytes may read as a table all the same
        raise DataError(f"{path} is {kind}, no CSV", "export the table as CSV in UTF-8, with commas")
    try:
        yield
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:  # the last for the names of the columns
        other = _other_separator(path, head)
        if other is not None:
            raise other from None
        raise DataError(
            f"{path} is not a readable CSV table: {str(error)[:500]}", "give the table as it was published, in UTF-8"
        ) from None


def _first_line(path: Path) -> str:
    """As Latin-1, which any bytes are; "" for a file that is packed or cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        return "" if path.suffix == ".gz" else file.readline(1 << 16).decode("latin-1").removeprefix("\xef\xbb\xbf")
    return ""


def strings(table: pa.Table | pa.RecordBatch, column: str) -> list[str]:
    """A string column without nulls: an empty field becomes ""."""
    return table.column(column).fill_null("").to_pylist()


def file_facts(path: Path, rows: int) -> dict[str, Any]:
    """Provenance of a table for the manifest: name without folder, rows, sha256."""
    return {"file": path.name, "rows": rows, "sha256": sha256_of(path)}
