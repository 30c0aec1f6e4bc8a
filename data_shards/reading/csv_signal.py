"""A signal in a text table: what separates its numbers and what their decimal mark is, told from enough lines; what
stays ambiguous is refused with what was seen."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.csv_notes import Notes, facts_in, is_note, names_in, notes_of, with_units
from cardialign.data_shards.reading.wfdb.leads import may_be_lead, name_and_unit, plain_name

LARGEST = 1 << 30
"""Bytes of a text table; an hour of twelve leads at 500 Hz takes a sixth of it."""
MOST_NAMES = 4096
"""Columns that have names, and columns from which rows are read one by one: a row per lead may be long."""
_SAMPLE_LINES, _SAMPLE_CHARACTERS = 1000, 1 << 24
_MARKS = (";", "\t", "|", ",")
_SAID = re.compile(r'"?sep=([;,|\t])"?')
"""The first line by which a table tells Excel what separates its fields."""
_BLANKS = r"\s+"
_MINUTES = re.compile(r"^(\d+:\d\d[.,]\d+)$")
"""Minutes and seconds with a fraction."""
_NO_TEXT = {b"\x1f\x8b": "a gzip file", b"PK\x03\x04": "a ZIP archive or Excel workbook", b"\x93NUM": "a .npy array"}
_NO_VALUE = ["-", *(f"{sign}1.#{word}" for sign in ("", "-") for word in ("QNAN", "SNAN", "IND", "INF", "NAN"))]
_NO_VALUE += ["nan(ind)", "-nan(ind)", "#DIV/0!", "#NUM!", "#VALUE!", "#REF!", "#NULL!", "#NAME?"]
"""What rdsamp, C on Windows and spreadsheets write where there is no number, beside the words that pandas knows."""
_WORDS = {";": "';'", "\t": "a tab", "|": "'|'", ",": "','", _BLANKS: "blanks"}


@dataclass(frozen=True)
class _Dialect:
    separator: str
    decimal: str
    quoted: bool


@dataclass(frozen=True)
class TextSignal:
    """values: (rows, columns); columns: their names, () without; facts: what lines that begin with # say, by name."""

    values: np.ndarray
    columns: tuple[str, ...]
    facts: dict[str, np.ndarray]


def read_csv_signal(path: Path) -> TextSignal:
    """The numbers of a CSV, the names in its first line, and what its comments say.

    Commas, semicolons, tabs, bars or blanks between numbers; decimal commas where a comma separates nothing; a second
    row of units; lines that begin with # are no rows (but for cells such as `#N/A`), and may hold the names
    (numpy.savetxt) or facts; UTF-8, or UTF-16 with its mark. Raises FileNotFoundError,
    RecordRejected("truncated-signal") where the last row is shorter than the first, and RecordRejected("bad-format")
    for what is no table of numbers or may be read in two ways.
    """
    encoding = _encoding(path)
    notes = notes_of(path, encoding)
    with path.open(encoding=encoding, errors="replace") as stream:
        told = _told(stream)
        top = _sample(told)
        said = _SAID.fullmatch(top[0][1].strip()) if top else None
        top = top[1:] if said else top
        if not top:
            raise RecordRejected("bad-format", f"{path}: an empty file, expected one row per sample")
        separator = said[1] if said else _separator([line for _, line in top])
        quoted = any('"' in line for _, line in top[:3])
        names = _fields(top[0][1], separator, quoted)
        counted = _counted(names)
        named = counted or not all(is_number(word) or is_number(word.replace(",", ".")) for word in names)
        units = with_units(names, _fields(top[1][1], separator, quoted)) if named and len(top) > 2 else None
        rows = top[named + (units is not None) :]
        lines = itertools.chain((line for _, line in rows), (line for _, line in told))
        dialect = _Dialect(separator, _decimal(lines, separator, quoted, path), quoted)
    if named and not counted and len(names) > MOST_NAMES:
        raise RecordRejected("bad-format", f"{path}: a first line of {len(names)} names, expected one per lead")
    if rows and (held := len(_fields(notes.last, separator, quoted))) < len(_fields(rows[0][1], separator, quoted)):
        raise RecordRejected("truncated-signal", f"{path}: its last row has {held} values, its first {len(names)}")
    skip = rows[0][0] if rows else top[-1][0] + 1
    given = [] if counted else (units or names) if named else _names_of_notes(notes, names, separator, quoted)
    facts = facts_in([text for line, text in zip(notes.lines, notes.texts, strict=False) if line < skip])
    columns: tuple[str, ...] = ()
    try:
        if len(names) > MOST_NAMES:
            values = _wide(path, skip, dialect, encoding)
        else:
            after = [line for line in notes.lines if line >= skip]
            values, columns = _tall(path, [*range(skip), *after] if after else skip, given, dialect, encoding)
        return TextSignal(values[:, 1:] if counted and not names[0] else values, columns, facts)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, OverflowError, csv.Error) as error:
        raise RecordRejected("bad-format", f"{path}: {type(error).__name__}: {str(error)[:300]}") from None


def _encoding(path: Path) -> str:
    size = path.stat().st_size
    if size > LARGEST:
        raise RecordRejected("bad-format", f"{path}: {size} bytes, a signal as text has at most {LARGEST}")
    with path.open("rb") as file:
        start = file.read(4)
    kind = next((kind for mark, kind in _NO_TEXT.items() if start.startswith(mark)), None)
    if kind is not None:
        raise RecordRejected("bad-format", f"{path} is {kind}, no table of text")
    return "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _names_of_notes(notes: Notes, first: Sequence[str], separator: str, quoted: bool) -> list[str]:
    return names_in(notes.texts, len(first), lambda text: _fields(text, separator, quoted))


def _counted(names: Sequence[str]) -> bool:
    """Whether a first line numbers the columns, `0,1,2` as pandas does, behind a blank where a column of row numbers
    has no name."""
    numbers = list(names[1:] if names and not names[0] else names)
    return len(numbers) > 2 and any(numbers == list(map(str, range(k, k + len(numbers)))) for k in (0, 1))


def is_number(word: str) -> bool:
    try:
        float(word or "nan")
    except ValueError:
        return False
    return True


def same_leads(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists name the same leads in the same order, however they spell them."""
    return list(map(plain_name, one)) == list(map(plain_name, other))


def _told(stream: Iterator[str]) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that say something."""
    for number, line in enumerate(stream):
        if line.strip() and not is_note(line):
            yield number, line.strip("\r\n")


def _sample(told: Iterator[tuple[int, str]]) -> list[tuple[int, str]]:
    top: list[tuple[int, str]] = []
    characters = 0
    for each in told:
        top.append(each)
        characters += len(each[1])
        if len(top) >= _SAMPLE_LINES or (characters > _SAMPLE_CHARACTERS and len(top) > 1):
            break
    return top


def _separator(lines: Sequence[str]) -> str:
    """The mark that stands in every line, else in the first; blanks where there is none, or where only they part
    numbers (`0,1 0,2`)."""
    common = [mark for mark in _MARKS if all(mark in line for line in lines)]
    mark = next(iter(common or [mark for mark in _MARKS if mark in lines[0]]), _BLANKS)
    if mark == ",":
        words = lines[-1].split()
        if len(words) > 1 and all("," in word and is_number(word.replace(",", ".", 1)) for word in words):
            return _BLANKS
    return mark


def _fields(line: str, separator: str, quoted: bool) -> list[str]:
    if separator == _BLANKS:
        words = line.split()
    elif quoted:
        try:
            words = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
        except csv.Error as error:  # quotes that are never closed
            raise ValueError(f"fields in quotes: {error}") from None
    else:
        words = line.split(separator)
    return [word.strip(" '\"") for word in words]


def _decimal(lines: Iterator[str], separator: str, quoted: bool, path: Path) -> str:
    """The decimal mark of the numbers: the first `_SAMPLE_LINES` lines, and more until one has a mark.

    Raises RecordRejected where numbers have both, and where commas may separate or be decimal marks.
    """
    comma = point = split = ""
    for number, line in enumerate(lines):
        if number >= _SAMPLE_LINES and (comma or point):
            break
        if "," not in line and "." not in line:
            continue
        if separator == "," and not quoted:
            point = point or ("." if "." in line else "")
            if number < _SAMPLE_LINES and not point and not split:
                split = next((word for word in line.split(",") if re.fullmatch(r"\s*0\d+\s*", word)), "")
            continue
        for word in _fields(line, separator, quoted):
            comma = comma or (word if "," in word else "")
            point = point or (word if "." in word else "")
    if comma and point:
        raise RecordRejected(
            "bad-format",
            f"{path}: numbers with both decimal marks, {point[:40]!r} and {comma[:40]!r}, separated by "
            f"{_WORDS[separator]}: which is the decimal mark, and which stands between thousands?",
        )
    if split and not point:
        raise RecordRejected(
            "bad-format",
            f"{path}: fields such as {split.strip()[:40]!r} between commas look like decimals after a comma; write "
            "decimal points, or separate numbers by ';'",
        )
    return "," if comma else "."


def _tall(
    path: Path, skip: int | list[int], names: list[str], dialect: _Dialect, encoding: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """One row per sample, from line number `skip` on, or all lines but these."""
    frame = pd.read_csv(
        path,
        header=None,
        skiprows=skip,
        sep=dialect.separator,
        decimal=dialect.decimal,
        na_values=_NO_VALUE,
        encoding=encoding,
        encoding_errors="replace",
        skipinitialspace=dialect.quoted,
    )
    named = bool(names)
    last = frame.shape[1] - 1
    if last and frame.iloc[:, last].isna().all() and (not named or last >= len(names) or not names[last]):
        frame, names = frame.iloc[:, :last], names[:last]  # a separator at the end of every line is no column
    if named and frame.shape[1] != len(names):
        hint = "; are its decimal marks commas, too?" if frame.shape[1] == 2 * len(names) else ""
        raise RecordRejected(
            "bad-format",
            f"{path}: rows of {frame.shape[1]} values under {len(names)} names, separated by "
            f"{_WORDS[dialect.separator]}{hint}",
        )
    frame, names = _without_words(frame, names)
    rows = _numbers(frame, names, path)
    empty = np.isnan(rows).all(axis=1) if rows.dtype.kind == "f" else np.zeros(len(rows), dtype=bool)
    while len(rows) and empty[len(rows) - 1]:  # a spreadsheet's empty rows at the end are no samples
        rows = rows[:-1]
    return rows, tuple(names)


def _wide(path: Path, skip: int, dialect: _Dialect, encoding: str) -> np.ndarray:
    """One row per lead, each with thousands of samples, from line number `skip` on."""
    rows: list[np.ndarray] = []
    with path.open(encoding=encoding, errors="replace") as stream:
        for number, line in _told(stream):
            if number < skip:
                continue
            words = _fields(line, dialect.separator, dialect.quoted)
            if words and not words[-1]:
                words.pop()
            try:
                rows.append(np.array([float(word.replace(dialect.decimal, ".") or "nan") for word in words]))
            except ValueError as error:
                raise RecordRejected("bad-format", f"{path}: line {number + 1}: {str(error)[:120]}") from None
    lengths = sorted({row.size for row in rows})
    if len(lengths) > 1:
        raise RecordRejected("bad-format", f"{path}: rows of {lengths[0]} to {lengths[-1]} values")
    return np.stack(rows)


def _without_words(frame: pd.DataFrame, names: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Columns of words beside leads: those of clock times as seconds from the first, any other without a value; they
    are no leads, and are left out later."""
    if not any(may_be_lead(name_and_unit(name)[0]) for name in names):
        return frame, names
    columns, named = [column for _, column in frame.items()], list(names)
    for place, name in enumerate(names):
        column = columns[place]
        if column.dtype.kind in "iuf" or may_be_lead(name_and_unit(name)[0]):
            continue
        if pd.to_numeric(column, errors="coerce").notna().any():  # numbers with a slip of the pen among them
            continue
        seconds = _seconds(column)
        columns[place] = column.map(lambda _: np.nan).astype(float) if seconds is None else seconds
        named[place] = name if seconds is None else "time (s)"
    return pd.concat(columns, axis=1), named


def _seconds(column: pd.Series) -> pd.Series | None:
    """`00:00:00.002`, `0:00.002`, `0 days 00:00:00.002`, `2020-01-01 00:00:00.002` -> seconds from the first; None for
    other words, and for clocks that stand still for most of the samples."""
    column = column.astype(str).str.strip(" '\"")
    column = column.str.replace(_MINUTES, r"00:\1", regex=True)
    for times in (
        pd.to_timedelta(column, errors="coerce").to_numpy(),
        pd.to_datetime(column, errors="coerce", format="ISO8601", utc=True).to_numpy(dtype="datetime64[ns]"),
    ):
        if not np.isnat(times).any() and np.unique(times).size > len(times) // 2:
            return pd.Series((times - times[0]) / np.timedelta64(1, "s"), index=column.index)
    return None


def _numbers(frame: pd.DataFrame, names: Sequence[str], path: Path) -> np.ndarray:
    """Raises RecordRejected("bad-format") that names the first cell that is no number."""
    for place, (_, column) in enumerate(frame.items()):
        if column.dtype.kind in "iuf":
            continue
        wrong = np.flatnonzero((pd.to_numeric(column, errors="coerce").isna() & column.notna()).to_numpy())
        if wrong.size:
            first = int(wrong[0])
            cell = str(column.iloc[first])
            where = f"row {first + 1} of column {names[place] if names else place + 1}"
            raise RecordRejected("bad-format", f"{path}: {where} holds {cell[:40]!r}, expected a number")
    return frame.to_numpy()
