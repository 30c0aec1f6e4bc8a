"""Positioned reads from the shards of a set: one `pread` per record, open files shared by all threads."""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.shard_set.cache import is_dropped, mark_used
from cardialign.data_shards.shard_set.remote import RemoteShards

MARK_SECONDS = 10.0
MAX_OPEN_SHARDS = 512  # below the usual limit of 1024 open files per process
REMEDY = "run `cardialign shards verify` on the set, then build it again or copy the shard again"


class _OpenFile:
    """A descriptor that closes when the last reader lets go of it, so that eviction never closes a file under a running
    read."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.marked = time.monotonic()

    def __del__(self) -> None:
        os.close(self.descriptor)

    def mark_used(self) -> None:
        """For the cache of remote shards: now and then, because a read must stay one system call."""
        if time.monotonic() - self.marked > MARK_SECONDS:
            self.marked = time.monotonic()
            mark_used(self.descriptor)


class ShardFiles:
    """Reads byte ranges of shards by number. Thread-safe; the least recently used files are closed above `max_open`.

    remote: fetches the shards that `folder`, its cache, lacks.
    """

    def __init__(self, folder: Path, names: Sequence[str], remote: RemoteShards | None = None) -> None:
        self._folder, self._names, self._remote = folder, names, remote
        self.max_open = MAX_OPEN_SHARDS
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[Path, Sequence[str], RemoteShards | None]:
        return self._folder, self._names, self._remote

    def __setstate__(self, state: tuple[Path, Sequence[str], RemoteShards | None]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def read(self, shard: int, offset: int, size: int, key: Callable[[], str]) -> bytes:
        """`size` bytes at `offset`.

        Raises DataError naming record, shard and offset when the file is missing or ends early.

        key: of the record, asked for an error only, because it costs a look into the index.
        """
        try:
            file = self._file(shard)  # held to the end of the read: the descriptor closes with its last holder
            data = os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise DataError(
                f"record {key()}: shard {self._names[shard]} cannot be read at offset {offset}: {error}", REMEDY
            ) from error
        if len(data) != size:
            raise DataError(
                f"record {key()}: shard {self._names[shard]} ends early, "
                f"{len(data)} of {size} bytes at offset {offset}",
                REMEDY,
            )
        return data

    def payload(self, shard: int, offset: int, size: int, crc32: int, key: Callable[[], str]) -> bytes:
        """A payload, checked against the crc32 of the index; arguments and errors as of `read`."""
        try:
            file = self._file(shard)
            data = os.pread(file.descriptor, size, offset)
        except OSError:
            data = b""
        if zlib.crc32(data) != crc32:
            self.read(shard, offset, size, key)  # says more when the file is missing or short
            raise DataError(
                f"record {key()}: payload in shard {self._names[shard]} at offset {offset} does not match its crc32",
                REMEDY,
            )
        return data

    def _file(self, shard: int) -> _OpenFile:
        with self._lock:
            file = self._open.get(shard)
            if file is not None:
                self._open.move_to_end(shard)
                if self._remote is not None:
                    file.mark_used()
                return file
        file = self._opened(
            shard
        )  # without the lock: a file that hangs or is fetched must not hold up the reads of others
        with self._lock:
            file = self._open.setdefault(shard, file)
            while len(self._open) > self.max_open:
                self._open.popitem(last=False)
            if self._remote is not None:  # what the cache has dropped takes space as long as it is open
                for number in [number for number, each in self._open.items() if is_dropped(each.descriptor)]:
                    del self._open[number]
            return file

    def _opened(self, shard: int) -> _OpenFile:
        name = self._names[shard]
        return _OpenFile(os.open(self._folder / name, os.O_RDONLY) if self._remote is None else self._remote.open(name))
