"""Signals in plain files: .npy, .npz and .csv, read without ever running what is in them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from data_shards.sources.base import RecordRejected

SUFFIXES = (".npy", ".npz", ".csv")


@dataclass(frozen=True)
class ArrayFile:
    """values: the signal as stored, 2-D; columns: the names in a CSV's first line, () without; others: the further arrays of an .npz."""

    values: np.ndarray
    columns: tuple[str, ...] = ()
    others: Mapping[str, np.ndarray] = field(default_factory=dict)

    def scalar(self, name: str) -> float | None:
        """The single number called `name`, None when there is none."""
        value = self.others.get(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 and value.dtype.kind in "iuf" else None

    def words(self, name: str) -> tuple[str, ...]:
        """The array of words called `name`, () when there is none."""
        value = self.others.get(name)
        return tuple(value.reshape(-1).tolist()) if value is not None and value.dtype.kind == "U" else ()


def read_array(path: Path, member: str = "") -> ArrayFile:
    """Read one signal. member: which array of an .npz (default: its only 2-D one).

    Raises RecordRejected: missing-file, and bad-format for anything that is no 2-D array of numbers, pickled objects included.
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
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, pd.errors.ParserError) as error:
        raise RecordRejected("bad-format", f"{path}: {type(error).__name__}: {error}") from None
    flat = [name for name, array in arrays.items() if array.ndim == 2]
    if not member and len(flat) != 1:
        raise RecordRejected("bad-format", f"{path} holds {', '.join(arrays) or 'nothing'}: name the array of the signal (option member)")
    chosen = member or flat[0]
    if chosen not in arrays:
        raise RecordRejected("bad-format", f"{path} has no array {chosen!r}; it holds {', '.join(arrays) or 'nothing'}")
    return ArrayFile(_checked(arrays.pop(chosen), path), others=arrays)


def leads_first(array: ArrayFile, leads: Sequence[str], orientation: str, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The signal as (L, T) and its lead names. orientation: "leads-first", "samples-first", or "" to tell by which side has one entry per lead.

    A CSV whose first line names its columns needs neither. Raises RecordRejected("bad-format") when the shape fits no side or both.
    """
    if array.columns:
        return array.values.T, array.columns
    fits = [side for side, size in zip(("leads-first", "samples-first"), array.values.shape, strict=True) if size == len(leads)]
    if (orientation and orientation not in fits) or not fits:
        raise RecordRejected("bad-format", f"{where}: an array {array.values.shape} is not {orientation or 'one'} of {len(leads)} leads")
    if not orientation and len(fits) > 1:
        raise RecordRejected("bad-format", f"{where}: an array {array.values.shape} of {len(leads)} leads: set the option orientation")
    return (array.values if (orientation or fits[0]) == "leads-first" else array.values.T), tuple(leads)


def _read_csv(path: Path) -> ArrayFile:
    with path.open(encoding="utf-8", errors="replace") as stream:
        first = [word.strip(' "\r\n') for word in stream.readline().split(",")]
    named = not all(_is_number(word) for word in first)
    frame = pd.read_csv(path, header=0 if named else None)
    return ArrayFile(_checked(frame.to_numpy(), path), tuple(str(name).strip() for name in frame.columns) if named else ())


def _checked(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise RecordRejected("bad-format", f"{path}: an array of {array.dtype} {array.shape}, expected numbers (leads, samples)")
    return array


def _is_number(word: str) -> bool:
    try:
        float(word or "nan")
    except ValueError:
        return False
    return True
