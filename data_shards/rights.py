"""Who may read what this program writes: its owner and, as the umask says, the owner's group; never other users.

Shard sets, text banks, run directories, caches, logs and results hold report text and identifiers, or lead to them. So
the rule is one for all of them, and stands here alone. A team shares through its group (a folder with the group's
`setgid` bit, or default ACLs, which an administrator has set and which count more than a umask). Rights that somebody
has given with `chmod` are never taken back. Tokens are files of their owner alone, wherever they are written.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator

OTHERS = 0o007


def close_to_others() -> int:
    """From now on this process writes nothing that other users may read; returns the umask that was."""
    before = os.umask(OTHERS)
    os.umask(before | OTHERS)
    return before


@contextlib.contextmanager
def closed_to_others() -> Iterator[None]:
    before = close_to_others()
    try:
        yield
    finally:
        os.umask(before)


def close_own_log() -> None:
    """Take from other users what stdout and stderr of this process are sent to, where that is a file of its own."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found = os.fstat(stream.fileno())
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid():
                os.fchmod(stream.fileno(), stat.S_IMODE(found.st_mode) & ~OTHERS)
