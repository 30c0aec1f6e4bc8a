"""Who may read what this program writes: its owner alone, unless a team said that it shares; never other users.

Shard sets, text banks, run directories, caches, logs and results hold report text and identifiers, or lead to them. So
the rule is one for all of them, and stands here alone. On many systems all users have one group, so a umask that also
lets other users read (022, 002: what systems set, and nobody chose) says nothing of the group: files are for their
owner. A team shares through its group with a umask of 027 or 007, or with CARDIALIGN_SHARE=group, and then the group
has what the umask gives it; the folder has the group's `setgid` bit, or default ACLs, which an administrator has set
and which count more than a umask. Rights that somebody has given with `chmod` are never taken back. Tokens are files of
their owner alone, wherever they are written.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator

OTHERS, GROUP, ALL_BUT_OWNER = 0o007, 0o070, 0o077
SHARE = "CARDIALIGN_SHARE"
"""Environment variable: `group` says that the owner's group may read, or write, as the umask says."""


def close_to_others() -> int:
    """From now on this process writes nothing that others may read; returns the umask that was."""
    before = os.umask(ALL_BUT_OWNER)
    os.umask(before | _closed(before))
    return before


def _closed(umask: int) -> int:
    """What is taken from the rights that a umask leaves."""
    chosen = umask & OTHERS == OTHERS and umask & GROUP != GROUP  # 077 shares with nobody
    shares = chosen or os.environ.get(SHARE, "").strip().lower() == "group"
    return OTHERS if shares else ALL_BUT_OWNER


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
                os.fchmod(stream.fileno(), stat.S_IMODE(found.st_mode) & ~_closed(_umask()))


def _umask() -> int:
    found = os.umask(ALL_BUT_OWNER)
    os.umask(found)
    return found
