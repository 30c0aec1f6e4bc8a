"""The folder on a node where fetched shards wait to be read again: shared by its processes, bounded in size, oldest use
first to go."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.shard_set.layout import SHARDS

log = logging.getLogger(__name__)
FOLDER_VARIABLE, SIZE_VARIABLE = "CARDIALIGN_CACHE", "CARDIALIGN_CACHE_GB"
DEFAULT_GB = 100.0


@dataclass(frozen=True)
class ShardCache:
    """folder, and the bytes it may take, all files counted; only shards are ever dropped, so tables and text banks
    larger than that stay."""

    folder: Path
    limit: int

    @classmethod
    def from_environment(cls) -> ShardCache:
        """CARDIALIGN_CACHE (default ~/.cache/cardialign/shards) and CARDIALIGN_CACHE_GB (default 100).

        Raises UsageError for a bad size.
        """
        given = os.environ.get(FOLDER_VARIABLE) or "~/.cache/cardialign/shards"
        size = os.environ.get(SIZE_VARIABLE) or str(DEFAULT_GB)
        try:
            limit = int(float(size) * 1e9)
        except (ValueError, OverflowError):
            limit = -1
        if limit < 0:
            raise UsageError(
                f"{SIZE_VARIABLE} is {size!r}, not a size", f"set {SIZE_VARIABLE} to gigabytes, for example 50"
            )
        return cls(Path(given).expanduser().absolute(), limit)

    @contextlib.contextmanager
    def fetching(self, path: Path) -> Iterator[None]:
        """Hold one shard for this thread: who comes later waits and then finds the file.

        The lock goes with the process.
        """
        with locked(path.with_name(f".{path.name}.lock")):
            yield

    def open(self, path: Path) -> int:
        """A descriptor of a cached shard, marked as used now."""
        descriptor = os.open(path, os.O_RDONLY)
        mark_used(descriptor)
        return descriptor

    def make_room(self, size: int) -> None:
        """Drop shards, least recently used first, until `size` more bytes fit or no shard is left.

        A file that a process has open stays readable for it and leaves the disk when it is closed; `ShardFiles` closes
        such files soon.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".room.lock"):
            total = sum(status.st_size for path in self.folder.rglob("*") if (status := _status(path)) is not None)
            shards = [
                (status.st_mtime_ns, status.st_size, path)
                for path in self.folder.glob(f"*/{SHARDS}")
                if (status := _status(path)) is not None
            ]
            for _, bytes_, path in sorted(shards):
                if total + size <= self.limit:
                    return
                path.unlink(missing_ok=True)
                total -= bytes_
                log.info("dropped shard=%s bytes=%d cache=%s", path.name, bytes_, self.folder)
            if total + size > self.limit:
                log.warning("cache over its limit folder=%s bytes=%d limit=%d", self.folder, total + size, self.limit)


def mark_used(descriptor: int) -> None:
    """Note on the file itself that it is in use; nothing happens when that is not allowed."""
    now = time.time_ns()  # given, because the kernel's own stamp is as coarse as its clock tick
    with contextlib.suppress(OSError):
        os.utime(descriptor, ns=(now, now))


def is_dropped(descriptor: int) -> bool:
    """True when the file has no name any more: it takes space only as long as it is open."""
    return os.fstat(descriptor).st_nlink == 0


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Exclusive lock on `path` between processes and threads of a node."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat() if path.is_file() else None
    except OSError:  # another process was faster
        return None
