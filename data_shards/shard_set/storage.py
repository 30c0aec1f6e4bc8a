"""What a process asks of storage: not too many open files at a time, and patience before it gives up.

All shard sets of a process share one budget of open files (`OPEN_FILES`): half of what the process may have open, so
that sockets, logs and libraries keep the other half. The first shard that is opened raises the soft limit to the hard
one, up to RAISED_TO. A limit that is met all the same closes the files that were used longest ago.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import resource
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cardialign.data_shards.errors import StorageError
from cardialign.data_shards.shard_set.cache import is_dropped, mark_used
from cardialign.data_shards.shard_set.layout import MANIFEST

log = logging.getLogger(__name__)
T = TypeVar("T")
PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds between the tries of `patiently`: a moment's trouble passes, an outage stops the run soon."""
MARK_SECONDS = 10.0
MOST_OPEN, LEAST_OPEN = 2048, 4
RAISED_TO = 65_536  # programs that are started from here may close every number up to their limit, one by one
TOO_MANY = (errno.EMFILE, errno.ENFILE)
_MOST_CLOSINGS = 20  # somebody else may take every file that is closed
_FULL = (errno.ENOSPC, errno.EDQUOT)
LASTING = (
    errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EROFS
)  # fmt: skip
"""What a file is or how it is called: waiting changes nothing."""


class OpenFile:
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


Key = tuple[int, int]
"""Number of the set in this process, number of the shard in the set."""


class OpenFiles:
    """The open shards of all sets of a process, least recently used first to close. Thread-safe.

    most: files that may be open at a time; by default half of the process's limit, found when the first one is kept.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._files: OrderedDict[Key, OpenFile] = OrderedDict()
        self._of_set: Counter[int] = Counter()
        # a set that nobody holds any more lets go of its files whenever Python finds it, perhaps while this is held
        self._lock = threading.RLock()

    def get(self, key: Key) -> OpenFile | None:
        """The file, which is now the one used last."""
        with self._lock:
            file = self._files.get(key)
            if file is not None:
                self._files.move_to_end(key)
            return file

    def keep(self, key: Key, file: OpenFile, most_of_set: int | None) -> OpenFile:
        """Keep a file that was just opened, or return the one that another thread was faster to keep.

        most_of_set: files that this set alone may have open.
        """
        with self._lock:
            if self._most is None:
                self._most = _budget()
            if key not in self._files:
                self._of_set[key[0]] += 1
            file = self._files.setdefault(key, file)
            while len(self._files) > self._most:
                self.drop(next(iter(self._files)))
            while most_of_set is not None and self._of_set[key[0]] > max(1, most_of_set):
                self.drop(next(other for other in self._files if other[0] == key[0]))
            return file

    def drop(self, key: Key) -> None:
        """Let go of a file; whoever reads from it meanwhile reads on."""
        with self._lock:
            if self._files.pop(key, None) is not None:
                self._of_set[key[0]] -= 1

    def drop_set(self, number: int) -> None:
        with self._lock:
            for key in [key for key in list(self._files) if key[0] == number]:
                self.drop(key)
            self._of_set.pop(number, None)

    def drop_unlinked(self, number: int) -> None:
        """Let go of the files of a set that have no name any more: they take space as long as they are open."""
        with self._lock:
            for key, file in list(self._files.items()):
                if key[0] == number and is_dropped(file.descriptor):
                    self.drop(key)

    def shards_of(self, number: int) -> list[int]:
        """Numbers of the shards of a set that are open."""
        with self._lock:
            return [key[1] for key in self._files if key[0] == number]

    def give_back(self) -> int:
        """Close the half that was used longest ago, and ask for no more than the rest from now on. Returns how many."""
        with self._lock:
            going = list(self._files)[: (len(self._files) + 1) // 2]
            for key in going:
                self.drop(key)
            if going:
                self._most = max(LEAST_OPEN, len(self._files))
            return len(going)


OPEN_FILES = OpenFiles()


def _budget() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    if soft == endless:
        return MOST_OPEN
    wanted = RAISED_TO if hard == endless else min(hard, RAISED_TO)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            log.info("open_files limit=%d raised_to=%d", soft, wanted)
            soft = wanted
        except (OSError, ValueError) as error:  # a sandbox may forbid it
            log.info("open_files limit=%d kept=%s", soft, error)
    return max(LEAST_OPEN, min(MOST_OPEN, soft // 2))


def patiently(act: Callable[[], T], what: str, remedy: str = "") -> T:
    """What `act` returns; an OSError is tried again after each of PAUSES, one of too many open files at once after some
    were closed.

    what: the file, in the words of the error. Raises StorageError that names it and says how often it was tried, and
    FileNotFoundError at once: whether a file that is not there is missed is for the caller to say.
    """
    pauses, closings = iter(PAUSES), 0
    for tries in itertools.count(1):
        try:
            return act()
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in TOO_MANY and closings < _MOST_CLOSINGS and OPEN_FILES.give_back():
                closings += 1
                log.warning("action=close-files file=%s error=%s", what, error.strerror)
                continue
            pause = None if error.errno in LASTING else next(pauses, None)
            if pause is None:
                times = f"tried {tries} times" if tries > 1 else "tried once"
                raise StorageError(f"{what} cannot be read ({times}): {error}", remedy or way_out(error)) from error
            log.warning("action=retry file=%s try=%d error=%s", what, tries, error)
            time.sleep(pause)
    raise AssertionError("the loop ends by returning or raising")


def check_is_there(folder: Path) -> None:
    """Raise OSError when the whole set is away, as a mount is that may come back: what is missing then is not lost."""
    if not (folder / MANIFEST).is_file():
        raise OSError(errno.ENODEV, "the folder of the set is not there", str(folder))


def too_many(error: OSError) -> bool:
    """Whether the limit of open files is used up, also where a library puts that into words of its own (`tempfile`: no
    usable temporary directory)."""
    if error.errno in TOO_MANY:
        return True
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as found:
        return found.errno in TOO_MANY
    return False


def way_out(error: OSError) -> str:
    """What to do about a file that cannot be read, by what the operating system said of it."""
    again = "then run the same command again: nothing was counted as damaged"
    if too_many(error):
        return f"raise the limit of open files (`ulimit -n`; on a cluster in the service or container), {again}"
    if error.errno in _FULL:
        return f"free space there, or set CARDIALIGN_CACHE to a folder on another disk, {again}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"give the user that runs this the right to read it, {again}"
    if error.errno in LASTING:
        return "look at what lies there, and copy the file there again"
    return f"check the storage or mount that it lies on, {again}"
