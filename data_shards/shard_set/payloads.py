"""Positioned reads from the shards of a set: one `pread` per record, open files shared by all threads.

A record that is not what the index says is damage, and a DataError of that record. A shard that is missing, of another
size or cannot be read is a StorageError of the whole shard: no record of it is to blame.
"""

from __future__ import annotations

import errno
import itertools
import os
import weakref
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from cardialign.data_shards.errors import DataError, StorageError
from cardialign.data_shards.files import open_regular
from cardialign.data_shards.shard_set.remote import RemoteShards
from cardialign.data_shards.shard_set.storage import OPEN_FILES, OpenFile, check_is_there, patiently

REMEDY = "run `cardialign shards verify` on the set, then build it again or copy the shard again"
_COPY = "copy the shard there again, or build the set again; `cardialign shards verify` says what else is wrong"
_NUMBERS = itertools.count()


class ShardFiles:
    """Reads byte ranges of shards by number. Thread-safe.

    sizes: bytes of each shard, as the manifest lists them. remote: fetches the shards that `folder`, its cache, lacks.
    max_open: files that this set may have open at a time, within the budget of the process (`storage.OPEN_FILES`).
    """

    def __init__(
        self, folder: Path, names: Sequence[str], sizes: Sequence[int], remote: RemoteShards | None = None
    ) -> None:
        self._folder, self._names, self._sizes, self._remote = folder, names, sizes, remote
        self.max_open: int | None = None
        self._number = next(_NUMBERS)
        weakref.finalize(self, OPEN_FILES.drop_set, self._number)

    def __getstate__(self) -> tuple[Path, Sequence[str], Sequence[int], RemoteShards | None]:
        return self._folder, self._names, self._sizes, self._remote

    def __setstate__(self, state: tuple[Path, Sequence[str], Sequence[int], RemoteShards | None]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def close(self) -> None:
        OPEN_FILES.drop_set(self._number)

    def open_shards(self) -> list[int]:
        """Numbers of the shards that are open."""
        return OPEN_FILES.shards_of(self._number)

    def read(self, shard: int, offset: int, size: int, key: Callable[[], str]) -> bytes:
        """`size` bytes at `offset`.

        Raises DataError naming record, shard and offset when the index points outside the shard, StorageError naming
        the shard when it is missing, has another size than the manifest says, or cannot be read after some tries.

        key: of the record, asked for an error only, because it costs a look into the index.
        """
        self._check_range(shard, offset, size, key)

        def attempt() -> bytes:
            try:
                file = self._file(shard)  # held to the end of the read: the descriptor closes with its last holder
                data = os.pread(file.descriptor, size, offset)
                if len(data) == size:
                    return data
                self._check_size(shard, file)
                raise OSError(errno.EIO, f"only {len(data)} of {size} bytes at offset {offset} came back")
            except (OSError, StorageError):
                OPEN_FILES.drop((self._number, shard))  # a stale handle would stay stale
                raise

        return patiently(attempt, f"shard {self._names[shard]} of {self._folder}")

    def payload(self, shard: int, offset: int, size: int, crc32: int, key: Callable[[], str]) -> bytes:
        """A payload, checked against the crc32 of the index; arguments and errors as of `read`, and DataError for a
        payload that does not match."""
        try:
            self._check_range(shard, offset, size, key)
            file = self._file(shard)
            data = os.pread(file.descriptor, size, offset)
            if zlib.crc32(data) == crc32 and len(data) == size:
                return data
        except OSError:
            pass  # tried again below, with patience and in words
        data = self.read(shard, offset, size, key)
        if zlib.crc32(data) != crc32:
            if hasattr(os, "posix_fadvise"):  # once more from the disk: this node's copy in memory may be what is wrong
                os.posix_fadvise(self._file(shard).descriptor, offset, size, os.POSIX_FADV_DONTNEED)
            data = self.read(shard, offset, size, key)
        if zlib.crc32(data) != crc32 and self._fetched_again(shard):
            data = self.read(shard, offset, size, key)
        if zlib.crc32(data) != crc32:
            raise DataError(
                f"record {key()}: payload in shard {self._names[shard]} at offset {offset} does not match its crc32",
                REMEDY,
            )
        return data

    def _fetched_again(self, shard: int) -> bool:
        """True when a shard behind a URL was damaged in the cache of this node, and will be fetched again."""
        if self._remote is None or not patiently(
            lambda: self._remote is not None and self._remote.drop_damaged(self._names[shard]), self._names[shard]
        ):
            return False
        OPEN_FILES.drop((self._number, shard))
        return True

    def _check_range(self, shard: int, offset: int, size: int, key: Callable[[], str]) -> None:
        if offset >= 0 and size >= 0 and offset + size <= self._sizes[shard]:
            return
        raise DataError(
            f"record {key()}: the index says {size} bytes at offset {offset} of shard {self._names[shard]}, which has "
            f"{self._sizes[shard]} bytes",
            REMEDY,
        )

    def _check_size(self, shard: int, file: OpenFile) -> None:
        found, listed = os.fstat(file.descriptor).st_size, self._sizes[shard]
        if found != listed:
            wrong = "ends early" if found < listed else "has grown"
            raise StorageError(
                f"shard {self._names[shard]} of {self._folder} {wrong}: it has {found} bytes, the manifest says "
                f"{listed}",
                _COPY,
            )

    def _file(self, shard: int) -> OpenFile:
        file = OPEN_FILES.get((self._number, shard))
        if file is not None:
            if self._remote is not None:
                file.mark_used()
            return file
        # without a lock: a file that hangs or is fetched must not hold up the reads of others
        file = OpenFile(self._opened(shard))
        self._check_size(shard, file)
        file = OPEN_FILES.keep((self._number, shard), file, self.max_open)
        if self._remote is not None:
            OPEN_FILES.drop_unlinked(self._number)
        return file

    def _opened(self, shard: int) -> int:
        name = self._names[shard]
        if self._remote is not None:
            return self._remote.open(name)
        try:
            return open_regular(self._folder / name)
        except FileNotFoundError:
            check_is_there(self._folder)
            raise StorageError(f"shard {name} of {self._folder} is missing", _COPY) from None
