"""Signals in plain files: .npy, .npz and .csv, read without ever running what is in them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.files import UNREADABLE_ARRAY

SUFFIXES = (".npy", ".npz", ".csv")


@dataclass(frozen=True)
class ArrayFile:
    """values: the signal as stored, 2-D; columns: the names in a CSV's first line, () without; others: the further
    arrays of an .npz."""

    values: np.ndarray
    columns: tuple[str, ...] = ()
    others: Mapping[str, np.ndarray] = field(default_factory=dict)

    def scalar(self, name: str) -> float | None:
        """The single number called `name`, written as a number or as text; None when there is none."""
        value = self.others.get(name)
        if (
            value is None
            or value.size != 1
            or value.dtype.kind not in "iufU"
            or not _is_number(str(value.reshape(-1)[0]))
        ):
            return None
        return float(value.reshape(-1)[0])

    def words(self, name: str) -> tuple[str, ...]:
        """The array of words called `name`, () when there is none."""
        value = self.others.get(name)
        return tuple(value.reshape(-1).tolist()) if value is not None and value.dtype.kind == "U" else ()


def read_array(path: Path, member: str = "") -> ArrayFile:
    """Read one signal. member: which array of an .npz (default: its only 2-D one).

    Raises RecordRejected: missing-file, and bad-format for anything that is no 2-D array of numbers, pickled objects
    included.
    """
    try:
        if path.suffix == ".csv":
            return _read_csv(path)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return ArrayFile(_checked(loaded, path))
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise RecordRejected("missing-file", f"{path}: no such file") from None
    except (*UNREADABLE_ARRAY, pd.errors.ParserError) as error:
        raise RecordRejected("bad-format", f"{path}: {type(error).__name__}: {error}") from None
    flat = [name for name, array in arrays.items() if array.ndim == 2]
    if not member and len(flat) != 1:
        raise RecordRejected(
            "bad-format", f"{path} holds {', '.join(arrays) or 'nothing'}: name the array of the signal (option member)"
        )
    chosen = member or flat[0]
    if chosen not in arrays:
        raise RecordRejected("bad-format", f"{path} has no array {chosen!r}; it holds {', '.join(arrays) or 'nothing'}")
    return ArrayFile(_checked(arrays.pop(chosen), path), others=arrays)


def leads_first(
    array: ArrayFile, leads: Sequence[str], orientation: str, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The signal as (L, T) and its lead names. orientation: "leads-first", "samples-first", or "" to tell by which side
    has one entry per lead.

    A CSV whose first line names its columns needs neither. Raises RecordRejected("bad-format") when the shape fits no
    side or both.
    """
    if array.columns:
        return array.values.T, array.columns
    fits = [
        side
        for side, size in zip(("leads-first", "samples-first"), array.values.shape, strict=True)
        if size == len(leads)
    ]
    if (orientation and orientation not in fits) or not fits:
        raise RecordRejected(
            "bad-format", f"{where}: an array {array.values.shape} is not {orientation or 'one'} of {len(leads)} leads"
        )
    if not orientation and len(fits) > 1:
        raise RecordRejected(
            "bad-format", f"{where}: an array {array.values.shape} of {len(leads)} leads: set the option orientation"
        )
    return (array.values if (orientation or fits[0]) == "leads-first" else array.values.T), tuple(leads)


def _read_csv(path: Path) -> ArrayFile:
    """Commas, semicolons, tabs or spaces between numbers; a decimal comma where the comma separates nothing; lines that
    begin with # left out."""
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        lines = ((number, line.strip("\r\n")) for number, line in enumerate(stream))
        told = ((number, line) for number, line in lines if line.strip() and not line.lstrip().startswith("#"))
        top = list(itertools.islice(told, 2))
    if not top:
        raise RecordRejected("bad-format", f"{path}: an empty file, expected one row per sample")
    number, head = top[0]
    separator = next((mark for mark in (";", "\t", ",") if mark in head), r"\s+")
    decimal = "," if separator != "," and "," in top[-1][1] and "." not in top[-1][1] else "."
    names = [word.strip(' "') for word in (head.split() if separator == r"\s+" else head.split(separator))]
    named = not all(_is_number(word.replace(decimal, ".")) for word in names)
    frame = pd.read_csv(
        path,
        header=None,
        skiprows=number + 1 if named else number,
        sep=separator,
        decimal=decimal,
        comment="#",
        encoding="utf-8-sig",
        encoding_errors="replace",
    )
    last = frame.shape[1] - 1
    if last and frame.iloc[:, last].isna().all() and (not named or last >= len(names) or not names[last]):
        frame, names = frame.iloc[:, :last], names[:last]  # a separator at the end of every line is no column
    if named and frame.shape[1] != len(names):
        raise RecordRejected("bad-format", f"{path}: rows of {frame.shape[1]} values under {len(names)} names")
    return ArrayFile(_checked(_numbers(frame, names if named else (), path), path), tuple(names) if named else ())


def _numbers(frame: pd.DataFrame, names: Sequence[str], path: Path) -> np.ndarray:
    """Raises RecordRejected("bad-format") that names the first cell that is no number."""
    for place, (_, column) in enumerate(frame.items()):
        wrong = np.flatnonzero((pd.to_numeric(column, errors="coerce").isna() & column.notna()).to_numpy())
        if wrong.size:
            first = int(wrong[0])
            cell = str(column.iloc[first])
            where = f"row {first + 1} of column {names[place] if names else place + 1}"
            raise RecordRejected("bad-format", f"{path}: {where} holds {cell[:40]!r}, expected a number")
    return frame.to_numpy()


def _checked(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise RecordRejected(
            "bad-format", f"{path}: an array of {array.dtype} {array.shape}, expected numbers (leads, samples)"
        )
    return array


def _is_number(word: str) -> bool:
    try:
        float(word or "nan")
    except ValueError:
        return False
    return True
