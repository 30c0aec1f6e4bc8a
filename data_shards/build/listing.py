"""A source's listing on disk: its entries in slices of one shard each, written in one walk and read back slice by
slice.

Memory does not grow with the entries, but for 8 bytes each while they are walked: a hash of their key, for the check
that no key occurs twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cardialign.data_shards.errors import DataError, UserError, disk_error
from cardialign.data_shards.files import DEEPEST, parse_own_json
from cardialign.data_shards.sources.base import KEY_PATTERN, Entry, Source

log = logging.getLogger(__name__)
LISTING = "listing"
"""In the work folder of a build."""
PROGRESS_SECONDS = 0.5
_SCALARS = {str, int, float, bool, type(None)}
_LIST, _DICT = "[]", "{}"
"""JSON has one kind of sequence; a list is written as {"[]": [...]}, a tuple as an array, a dict that could be taken
for either as {"{}": {...}}."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Where the entries of one shard lie in the listing: byte offset and size, size when decompressed, crc32 of the
    bytes, entries."""

    offset: int
    size: int
    plain_size: int
    crc32: int
    entries: int


@dataclass(frozen=True)
class Listing:
    """A listing that was written to `path`. sha256: over the entries in their order, however they are cut into
    slices."""

    path: Path
    slices: tuple[Slice, ...]
    sha256: str

    def __len__(self) -> int:
        return sum(each.entries for each in self.slices)

    def __iter__(self) -> Iterator[Entry]:
        for each in self.slices:
            yield from read_slice(self.path, each)


def write_listing(
    source: Source,
    path: Path,
    entries_per_slice: int,
    *,
    folds: tuple[int, ...] | None = None,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Listing:
    """Walk the source once, to its end, and write what is kept.

    A fold that the listing knows saves reading the signal; where it does not, the record is kept here. progress(entries
    walked) now and then.

    Raises DataError for a key that is malformed or occurs twice, for a source that fails, for facts that JSON cannot
    hold, when nothing is kept, and when the disk is full.
    """
    hashes = array("q")
    others: set[int] = set()
    kept = 0
    shown = time.monotonic()
    with _SliceWriter(path, source.name, entries_per_slice) as writer:
        for entry in _entries(source):
            if not KEY_PATTERN.fullmatch(entry.key):
                raise DataError(
                    f"{source.name}: record key {entry.key!r} ({entry.path}) holds characters other than letters, "
                    "digits, '-' and '_'",
                    "correct the record's id where the data set lists it",
                )
            hashes.append(hash(entry.key))
            if progress is not None and len(hashes) % 4096 == 0 and time.monotonic() - shown > PROGRESS_SECONDS:
                shown = time.monotonic()
                progress(len(hashes))
            elsewhere = folds is not None and isinstance(fold := entry.meta.get("fold"), int) and fold not in folds
            if elsewhere:
                others.add(entry.meta["fold"])
            elif limit is None or kept < limit:
                writer.add(entry)
                kept += 1
        listing = writer.end()
    _check_distinct(source, hashes)
    if not kept:
        there = sorted(others)
        raise DataError(
            f"{source.name}: no record to read under {source.root}"
            + (f" in folds {list(folds)}" if folds is not None else ""),
            f"its {len(hashes)} records are in the folds {', '.join(map(str, there[:20]))}" if there else "",
        )
    log.info("listing source=%s records=%d kept=%d bytes=%d", source.name, len(hashes), kept, path.stat().st_size)
    return listing


def _entries(source: Source) -> Iterator[Entry]:
    """The entries of a source. Raises DataError for what it does not declare: a table or a disk may cause it."""
    number = 0
    try:
        for entry in source.entries():
            number += 1
            yield entry
    except UserError:
        raise
    except Exception as error:
        raise DataError(
            f"{source.name}: the listing of {source.root} failed after {number} records with {type(error).__name__}: "
            f"{str(error)[:500]}",
            "check that the folder and its tables can be read; where in the reader it failed shows with --debug",
        ) from error


class _SliceWriter:
    def __init__(self, path: Path, source: str, entries_per_slice: int) -> None:
        self._path, self._source, self._per_slice = path, source, entries_per_slice
        self._codec = pa.Codec("zstd", compression_level=1)
        self._digest = hashlib.sha256()
        self._waiting: list[Entry] = []
        self._slices: list[Slice] = []
        self._offset = 0
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise disk_error(error, path) from error

    def __enter__(self) -> _SliceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(
            OSError
        ):  # a full disk refuses the last buffered bytes; it was said when they were written
            self._file.close()

    def add(self, entry: Entry) -> None:
        self._waiting.append(entry)
        if len(self._waiting) == self._per_slice:
            self._write()

    def end(self) -> Listing:
        if self._waiting:
            self._write()
        return Listing(self._path, tuple(self._slices), self._digest.hexdigest())

    def _write(self) -> None:
        text = encode_entries(self._waiting, self._source)
        packed = self._codec.compress(text, asbytes=True)
        self._digest.update(text[1:-1] + b",")  # without the brackets, so that where a slice ends does not matter
        try:
            self._file.write(packed)
            self._file.flush()
        except OSError as error:
            raise disk_error(error, self._path, self._offset) from error
        self._slices.append(Slice(self._offset, len(packed), len(text), zlib.crc32(packed), len(self._waiting)))
        self._offset += len(packed)
        self._waiting = []


def read_slice(path: Path, part: Slice) -> list[Entry]:
    """The entries of one slice. Raises DataError when they are not there as they were written."""
    try:
        with path.open("rb") as file:
            file.seek(part.offset)
            packed = file.read(part.size)
    except OSError as error:
        raise DataError(
            f"cannot read the listing {path}: {error}", "run the same build again: it writes the listing anew"
        ) from error
    if len(packed) != part.size or zlib.crc32(packed) != part.crc32:
        raise DataError(
            f"the listing {path} is damaged at byte {part.offset}: {len(packed)} of {part.size} bytes, or another "
            "checksum",
            "run the same build again: it writes the listing anew",
        )
    return decode_entries(pa.decompress(packed, part.plain_size, codec="zstd", asbytes=True))


def encode_entries(entries: list[Entry], source: str = "") -> bytes:
    """Entries as JSON from which `decode_entries` makes equal ones: tuples stay tuples, lists lists, numbers what they
    are to the last bit.

    Raises DataError for a fact that is no str, int, float, bool or None, nor a tuple, list or dict (with names as keys)
    of these, or that is nested too deeply; it names the record.
    """
    plain = []
    for entry in entries:
        try:
            _check_names(entry.meta)
            meta = {name: value if type(value) in _SCALARS else _plain(value) for name, value in entry.meta.items()}
            plain.append([entry.key, entry.path, meta])
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{source}: what the listing says about record {entry.key} cannot be kept: {error}",
                "let `entries` give text, numbers, None, and tuples, lists or dicts of them",
            ) from None
    # a file's name may hold bytes that are no UTF-8, which Python keeps as lone surrogates
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def decode_entries(text: bytes) -> list[Entry]:
    return [
        Entry(key, path, {name: _restored(value) for name, value in meta.items()})
        for key, path, meta in parse_own_json(text)
    ]


def _plain(value: Any, depth: int = 1) -> Any:
    """Raises TypeError for what JSON cannot hold, ValueError for what stands too deep in others of its kind."""
    if value is None or isinstance(value, str | int | float):
        return value
    if depth > DEEPEST:
        raise ValueError(f"more than {DEEPEST} lists, tuples and dicts in one another")
    if isinstance(value, tuple):  # JSON writes a tuple as an array by itself
        return value if _SCALARS.issuperset(map(type, value)) else [_plain(each, depth + 1) for each in value]
    if isinstance(value, dict):
        _check_names(value)
        made = {name: _plain(each, depth + 1) for name, each in value.items()}
        return {_DICT: made} if len(made) == 1 and (_LIST in made or _DICT in made) else made
    if isinstance(value, list):
        return {_LIST: [_plain(each, depth + 1) for each in value]}
    raise TypeError(f"a {type(value).__name__}: {value!r}")


def _check_names(meta: dict[Any, Any]) -> None:
    for name in meta:
        if type(name) is not str:
            raise TypeError(f"a dict with the key {name!r}")


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return tuple([_restored(each) for each in value])
    if isinstance(value, dict):
        if len(value) == 1:
            if _LIST in value:
                return [_restored(each) for each in value[_LIST]]
            value = value.get(_DICT, value)
        return {name: _restored(each) for name, each in value.items()}
    return value


def _check_distinct(source: Source, hashes: array[int]) -> None:
    """Equal keys have equal hashes.

    Where hashes are equal, a second walk decides by the keys themselves: kept or not, each was in the first.
    """
    values = np.frombuffer(hashes, dtype=np.int64)
    values.sort()
    suspects = set(values[1:][values[1:] == values[:-1]].tolist())
    if not suspects:
        return
    seen: dict[str, tuple[int, str]] = {}
    for number, entry in enumerate(_entries(source), start=1):
        if hash(entry.key) in suspects:
            if entry.key in seen:
                first, path = seen[entry.key]
                raise DataError(
                    f"{source.name}: record key {entry.key!r} occurs more than once: {path} (record {first} of the "
                    "listing) and "
                    f"{entry.path} (record {number})",
                    "remove the repeated row or copy; build folders that repeat names one by one",
                )
            seen[entry.key] = number, entry.path
