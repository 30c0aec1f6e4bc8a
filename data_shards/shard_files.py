"""Positioned reads from the shards of a set: one `pread` per record, open files shared by all threads."""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.errors import DataError

if TYPE_CHECKING:
    from data_shards.shard_set import ShardSet

MAX_OPEN_SHARDS = 512  # below the usual limit of 1024 open files per process
REMEDY = "run `cardialign shards verify` on the set, then build it again or copy the shard again"


class _OpenFile:
    """A descriptor that closes when the last reader lets go of it, so that eviction never closes a file under a running read."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardFiles:
    """Reads byte ranges of shards by number. Thread-safe; the least recently used files are closed above `max_open`."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names
        self.max_open = MAX_OPEN_SHARDS
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[Path, Sequence[str]]:
        return self._folder, self._names

    def __setstate__(self, state: tuple[Path, Sequence[str]]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @property
    def open_count(self) -> int:
        """Shards that are kept open at this moment."""
        return len(self._open)

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def read(self, shard: int, offset: int, size: int, key: str) -> bytes:
        """`size` bytes at `offset`. Raises DataError naming record, shard and offset when the file is missing or ends early."""
        try:
            file = self._file(shard)  # held to the end of the read: the descriptor closes with its last holder
            data = os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise DataError(f"record {key}: shard {self._names[shard]} cannot be read at offset {offset}: {error}", REMEDY) from error
        if len(data) != size:
            raise DataError(f"record {key}: shard {self._names[shard]} ends early, {len(data)} of {size} bytes at offset {offset}", REMEDY)
        return data

    def payload(self, shards: ShardSet, row: int) -> bytes:
        """The payload of one row, checked against the crc32 of the index. Raises DataError naming record, shard and offset."""
        shard, offset = int(shards.shard[row]), int(shards.offset[row])
        try:
            file = self._file(shard)
            data = os.pread(file.descriptor, int(shards.size[row]), offset)
        except OSError:
            data = b""
        if zlib.crc32(data) != shards.crc32[row]:
            key = shards.key(row)
            self.read(shard, offset, int(shards.size[row]), key)  # says more when the file is missing or short
            raise DataError(f"record {key}: payload in shard {self._names[shard]} at offset {offset} does not match its crc32", REMEDY)
        return data

    def _file(self, shard: int) -> _OpenFile:
        with self._lock:
            file = self._open.get(shard)
            if file is not None:
                self._open.move_to_end(shard)
                return file
        file = _OpenFile(self._folder / self._names[shard])  # without the lock: a file that hangs must not hold up the reads of others
        with self._lock:
            file = self._open.setdefault(shard, file)
            while len(self._open) > self.max_open:
                self._open.popitem(last=False)
            return file
