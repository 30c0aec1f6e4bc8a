"""Bytes of plain files. What is none (a pipe, a device) is refused, where reading would wait, or go on, for ever.

A name that data gives is followed within its folder: a link in an archive is no reason to read what its maker may not.
"""

from __future__ import annotations

import errno
import gzip
import os
import stat
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.files import open_regular

MOST_UNPACKED = 100
"""Times what was read of a gzip file that it may have unpacked to, beyond `LEAST_LIMIT` bytes; tables of numbers, names
and reports unpack to 3 to 30 times."""
LEAST_LIMIT = 1 << 25
FOLLOW = "CARDIALIGN_FOLLOW_LINKS"
"""Environment variable: 1 says that links of a data set which lead out of their folders were made by who reads it."""
_ANNEX = "/.git/annex/objects/"
"""Where git-annex and DataLad keep the files of a data set, within it, behind links."""


def check_held(folder: str | Path, path: str | Path) -> None:
    """Raise RecordRejected("outside-root") where `path`, a name below `folder`, is a link that leads out of it."""
    simple = os.path.dirname(path) == os.fspath(folder)
    if (simple and not os.path.islink(path)) or os.environ.get(FOLLOW, "") not in ("", "0"):
        return
    home, real = os.path.realpath(folder), os.path.realpath(path)
    kept, annexed, _ = real.partition(_ANNEX)
    if not f"{real}/".startswith(f"{home.rstrip('/')}/") and not (annexed and f"{home}/".startswith(f"{kept}/")):
        raise RecordRejected(
            "outside-root",
            f"{path}: a link to {real[:200]!r}, out of its folder; nothing is read there but with {FOLLOW}=1",
        )


def check_entry(root: Path, path: str, suffixes: tuple[str, ...] = ("", ".hea")) -> None:
    """Raise RecordRejected("outside-root") where the record that a table or a walk calls `path` is none below `root`:
    its path leads out of it, or its file is a link out of its folder."""
    parts = PurePosixPath(path.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise RecordRejected("outside-root", f"{path[:200]!r} does not lie under the root {root}")
    for suffix in suffixes:
        file = root / f"{path}{suffix}"
        check_held(file.parent, file)


def plain_bytes(path: str | Path, most: int) -> tuple[bytes, int]:
    """At most `most` bytes of a plain file, and its size. Raises OSError, also for what is no plain file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe that nobody writes to would block
    with open(descriptor, "rb", buffering=0) as stream:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a plain file")
        if found.st_size <= most:
            return stream.read(), found.st_size
        parts = bytearray()
        while len(parts) < most and (part := stream.read(most - len(parts))):
            parts += part
        return bytes(parts), found.st_size


class Unpacked:
    """The content of a .gz file for whoever reads a file, up to a limit. Raises OSError beyond it, and for damage."""

    def __init__(self, path: Path) -> None:
        self.path, self.closed, self._read = path, False, 0
        self._packed: BinaryIO = os.fdopen(open_regular(path), "rb")
        self._file = gzip.GzipFile(fileobj=self._packed)

    def read(self, size: int = -1) -> bytes:
        """At most so many bytes; the file is never read in one piece."""
        wanted = 1 << 20 if size < 0 else size
        try:
            part = self._file.read(wanted)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OSError(errno.EINVAL, f"no gzip file that can be unpacked: {error}", str(self.path)) from None
        self._read += len(part)
        if self._read > max(LEAST_LIMIT, MOST_UNPACKED * self._packed.tell()):
            raise OSError(
                errno.EFBIG, f"it unpacks to more than {LEAST_LIMIT} bytes and {MOST_UNPACKED} times", str(self.path)
            )
        return part

    def close(self) -> None:
        self.closed = True
        self._packed.close()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False
