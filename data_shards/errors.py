"""What can go wrong without a mistake of our own, for every floor above the kernels; and the exit codes of the
programs.

`assert` is for invariants of our own; everything a user can get wrong raises `UserError` (or a subclass) and says what
is wrong, where, and what to do about it. The command line turns it into one readable line and an exit code.
`RecordRejected` is no error: so a single bad record is turned away while a data set is read.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cardialign.data_shards.shown import shown

DONE = 0
FAILED = 1
NOT_LEARNING = 3
"""A run that the collapse alarm ended: its settings are to be looked at before it is tried again."""
STOPPED = 75
"""EX_TEMPFAIL: stopped at a committed checkpoint; the same command continues."""
INTERRUPTED = 130
"""128 + SIGINT: Ctrl-C."""
TERMINATED = 143
"""128 + SIGTERM: a scheduler, `kill`."""


class UserError(ValueError):
    """Something the user gave or set is wrong. `problem` names the thing, `remedy` the way out.

    As text, in a traceback or a log of others, it is `shown`: without control characters and secrets.
    """

    exit_code = FAILED

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(shown(f"{problem}\n  remedy: {remedy}" if remedy else problem, lines=True))

    def reword(self, change: Callable[[str], str]) -> None:
        """Say it in the words of who asked, which a caller knows and the place that raised it does not."""
        UserError.__init__(self, change(self.problem), change(self.remedy))

    def __reduce__(self) -> tuple[Any, ...]:  # exceptions cross process borders; keep both parts
        return type(self), (self.problem, self.remedy)


class UsageError(UserError):
    """Wrong words on the command line or in a configuration (exit code 2)."""

    exit_code = 2  # as argparse has it


class DataError(UserError):
    """A data set, shard, record or index that cannot be read as promised."""


class StorageError(DataError):
    """A whole file, or the storage under it, does not give what it holds. No single record is to blame, so none is
    counted as damaged: the run stops, and the same command goes on once the storage is back."""


class RecordRejected(Exception):  # noqa: N818  (an outcome of reading, counted by the build, not an error of the program)
    """One record cannot be used.

    `reason` is a short stable slug that builds count by, `detail` names the file and what was found.

    Slugs: missing-file, unreadable-header, truncated-signal, unknown-leads, bad-gain, no-signal, bad-format,
    bad-labels, bad-metadata, outside-root. The build adds reader-failed, for what a reader does not declare.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")

    def __reduce__(self) -> tuple[Any, ...]:  # raised in worker processes; keep both parts
        return type(self), (self.reason, self.detail)


_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
"""All that numpy says of a full disk."""


def disk_error(error: OSError, path: Path, written: int = 0, done: int = 0, entries: int = 0) -> DataError:
    """A failed write as a DataError; for a full disk it says how many bytes were written, are free and are still
    needed."""
    cut_short = error.errno is None and _SHORT_WRITE.search(str(error))
    if error.errno not in _DISK_FULL and not cut_short:
        return DataError(
            f"cannot write {path}: {error}",
            "check that the folder exists, may be written to, and lies on a healthy disk",
        )
    why = os.strerror(error.errno or errno.ENOSPC)
    needed = max(int(written / done * entries) if done else 0, written)
    free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
    return DataError(
        f"disk full while writing {path}: {why} after {written} bytes; this file needs about "
        f"{needed} bytes, "
        f"{free} bytes are free",
        "free space (or raise the quota) and run the same build again: finished shards are kept, the unfinished file "
        "was removed",
    )
