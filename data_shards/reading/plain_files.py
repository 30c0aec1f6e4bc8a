"""Bytes of plain files. What is none (a pipe, a device) is refused, where reading would wait, or go on, for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path


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
