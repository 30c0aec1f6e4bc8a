"""`index.parquet` one column at a time, as plain arrays: no table in memory, no Python object per record.

The columns of a large index are laid down once as `.npy` files in the temporary folder of the machine (TMPDIR), below
the digest of the index as it was read here, and memory-mapped from there: all processes of a node share them, and the
kernel drops pages that are not in use. Each has the digest of its own content in its name and is compared with it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cardialign.data_shards.array_files import load_array
from cardialign.data_shards.errors import DataError, StorageError
from cardialign.data_shards.files import UNREADABLE_ARRAY, sha256_of, sha256_once, temporary_path
from cardialign.data_shards.shard_set.layout import check_unfolded
from cardialign.data_shards.shard_set.storage import TOO_MANY, check_is_there, patiently, too_many, way_out

T = TypeVar("T")

MAPPED_FROM = 2_000_000
"""Records from which columns are memory-mapped; below, they take at most some 40 bytes a record."""
_ROWS = 1 << 17  # decoded at a time
_AGAIN = "copy the shard set there again, or build it again; `cardialign shards verify` says what else is wrong"


def check_table(path: Path, listed: str) -> None:
    """Compare a table of a set with the digest that the manifest lists, once per process.

    Raises DataError when it is missing or is not the one that the set was built with, StorageError when it cannot be
    read.
    """
    found = patiently(lambda: _there(path, sha256_once), str(path))
    if found != listed:
        raise DataError(
            f"{path} is not the one that this set was built with: its sha256 is {found[:12]}..., the manifest says "
            f"{listed[:12]}...",
            _AGAIN,
        )


def _plain(column: pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)


class IndexFile:
    """Columns of an index, each read when it is first asked for.

    Thread-safe. Raises DataError for a file that is missing, is not the one that the manifest lists or makes no table,
    StorageError for one that the storage does not give.

    digest: what the manifest says of the file; it is compared with the file's content before anything is read or kept
    under it. mapped_from: records from which columns are mapped.
    """

    def __init__(self, path: Path, digest: str, mapped_from: int = MAPPED_FROM) -> None:
        check_table(path, digest)
        self.path, self._digest = path, digest
        with self._reading() as file:
            try:
                check_unfolded(file.metadata)
            except ValueError as error:
                raise DataError(f"{path} is no index: {error}", _AGAIN) from None
            self.records = int(file.metadata.num_rows)
            groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        self._group_starts = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
        self._mapped = self.records >= mapped_from
        self._columns: dict[str, np.ndarray] = {}
        self._keys: tuple[int, pa.ChunkedArray] | None = None
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self._digest, 0 if self._mapped else self.records + 1)

    def column(self, name: str, dtype: Any, convert: Callable[[pa.Array], np.ndarray] = _plain) -> np.ndarray:
        """A column as an array of `dtype`, read-only; convert: Arrow values -> numbers, a stretch of rows at a time."""

        def fill(out: np.ndarray) -> None:
            at = 0
            with self._reading() as file:
                for part in file.iter_batches(_ROWS, columns=[name], use_threads=False):
                    if at + part.num_rows <= self.records:
                        out[at : at + part.num_rows] = convert(part.column(0))
                    at += part.num_rows
                self._whole(name, at)

        return self._made(name, np.dtype(dtype), fill)

    def patients(self) -> np.ndarray:
        """int32: one code per distinct patient, by first appearance; a record without a patient id is a patient of its
        own.

        A row group at a time: its codes go straight to the column, only the distinct ids stay.
        """

        def fill(out: np.ndarray) -> None:
            ids: list[pa.Array] = []
            bounds = [0]
            with self._reading(read_dictionary=["patient"]) as file:
                for group in range(file.metadata.num_row_groups):
                    for chunk in file.read_row_group(group, columns=["patient"], use_threads=False).column(0).chunks:
                        bounds.append(bounds[-1] + len(chunk))
                        if bounds[-1] <= self.records:
                            out[bounds[-2] : bounds[-1]] = pc.fill_null(chunk.indices, -1).to_numpy()
                        ids.append(chunk.dictionary)
                self._whole("patient", bounds[-1])
            distinct = pa.chunked_array(ids, pa.string()).dictionary_encode()
            names = distinct.chunk(0).dictionary if distinct.num_chunks else pa.array([], pa.string())
            empty, unknown = pc.index(names, "").as_py(), 0
            for start, stop, known in zip(bounds, bounds[1:], distinct.chunks, strict=False):
                within = out[start:stop]
                codes = np.append(known.indices.to_numpy(), np.int32(-1))[within]  # -1, no id, meets the -1 at the end
                nameless = np.flatnonzero((codes < 0) | (codes == empty))
                codes[nameless] = len(names) + unknown + np.arange(nameless.size, dtype=np.int32)
                within[:] = codes
                unknown += nameless.size

        return self._made("patient", np.dtype(np.int32), fill)

    def key(self, row: int) -> str:
        """Key of one record. Reads the keys of its row group, and keeps them for the next question."""
        group = int(np.searchsorted(self._group_starts, row, side="right")) - 1
        with self._lock:
            if self._keys is None or self._keys[0] != group:
                with self._reading() as file:
                    keys = file.read_row_group(group, columns=["key"]).column(0)
                    if len(keys) != int(self._group_starts[group + 1] - self._group_starts[group]):
                        raise OSError(f"row group {group} holds {len(keys)} keys")
                    self._keys = group, keys
            return self._keys[1][row - int(self._group_starts[group])].as_py()

    def arrow(self, name: str) -> pa.ChunkedArray:
        """A column as Arrow holds it, not kept: for labels and look-ups by key."""
        with self._reading() as file:
            return file.read(columns=[name]).column(0)

    def table(self) -> pa.Table:
        """Everything."""
        with self._reading() as file:
            return file.read()

    def _made(self, name: str, dtype: np.dtype, fill: Callable[[np.ndarray], None]) -> np.ndarray:
        with self._lock:
            if name not in self._columns:
                if self._mapped:
                    self._columns[name] = self._mapped_column(name, dtype, fill)
                else:
                    made = np.empty(self.records, dtype=dtype)
                    fill(made)
                    made.setflags(write=False)
                    self._columns[name] = made
            return self._columns[name]

    def _mapped_column(self, name: str, dtype: np.dtype, fill: Callable[[np.ndarray], None]) -> np.ndarray:
        try:
            return self._kept_column(_own_folder(self._digest), name, dtype, fill)
        except OSError as error:
            raise StorageError(
                f"cannot lay down column {name} of {self.path} in the temporary folder: {error}",
                way_out(error) if too_many(error) else "free space there, or set TMPDIR to a folder on another disk",
            ) from error

    def _kept_column(self, folder: Path, name: str, dtype: np.dtype, fill: Callable[[np.ndarray], None]) -> np.ndarray:
        for path in sorted(folder.glob(f"{name}-*.npy")):
            with suppress(*UNREADABLE_ARRAY):  # damaged, or replaced a moment ago: it is laid down again
                if _own_name(name, path) != path.name:
                    continue
                kept = load_array(path, mapped=True)
                if kept.shape == (self.records,) and kept.dtype == dtype:
                    return kept
        temporary = temporary_path(folder / f"{name}.npy")
        try:
            fresh = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=(self.records,))
            fill(fresh)
            fresh.flush()
            del fresh
            # Arrow keeps what decoding took, and the order is about to need as much
            pa.default_memory_pool().release_unused()
            path = folder / _own_name(name, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return load_array(path, mapped=True)

    def _whole(self, name: str, rows: int) -> None:
        if rows != self.records:
            raise OSError(f"its column {name} holds {rows} of {self.records} rows")

    @contextmanager
    def _reading(self, **options: Any) -> Iterator[pq.ParquetFile]:
        def opened() -> pq.ParquetFile:
            try:
                return _there(
                    self.path,
                    lambda path: pq.ParquetFile(path, memory_map=True, page_checksum_verification=True, **options),
                )
            except OSError as error:
                if error.errno is None:  # Arrow's own word for a file that is no table
                    raise DataError(f"{self.path} cannot be read: {error}", _AGAIN) from error
                raise

        try:
            with patiently(opened, str(self.path)) as file:
                yield file
        except OSError as error:
            if error.errno in TOO_MANY:  # nothing is wrong with the file
                raise StorageError(f"{self.path} cannot be read: {error}", way_out(error)) from error
            raise DataError(f"{self.path} cannot be read: {error}", _AGAIN) from error
        except (
            pa.ArrowException,
            IndexError,
            KeyError,
        ) as error:  # the last two for a column that has another name
            raise DataError(f"{self.path} cannot be read: {error}", _AGAIN) from error


def _there(path: Path, read: Callable[[Path], T]) -> T:
    """read(path). Raises DataError for a file that is missing from a set that is there."""
    try:
        return read(path)
    except FileNotFoundError:
        check_is_there(path.parent)
        raise DataError(f"{path} is missing", _AGAIN) from None


def _own_name(name: str, path: Path) -> str:
    """What a laid-down column is called: its name, and the digest of what the file holds."""
    return f"{name}-{sha256_of(path)[:32]}.npy"


def _own_folder(digest: str) -> Path:
    """A folder that belongs to this user alone: columns that another could have written must not be mapped."""
    base = Path(tempfile.gettempdir()) / f"cardialign-index-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    facts = base.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        base = Path(tempfile.mkdtemp(prefix="cardialign-index-"))
    folder = base / hashlib.sha256(digest.encode()).hexdigest()[:32]  # whatever it is, it is no path
    folder.mkdir(exist_ok=True)
    return folder
