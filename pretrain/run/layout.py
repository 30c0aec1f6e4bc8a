"""Whether a run directory has the form that a start needs, judged before anything in it is changed; and what to say
when it cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run import files

FOLDERS = (
    files.CHECKPOINTS,
    f"{files.CHECKPOINTS}/quarantine",
    files.WORKERS,
    files.START,
    files.LOGS,
    files.RAY,
    files.EARLIER,
    files.BEST,
    files.BAD_STEPS,
    files.SURVIVORS,
)
FILES = (
    files.CONFIG,
    files.METRICS,
    files.SYSTEM,
    files.EVALUATIONS,
    files.BEST_NOTE,
    files.FIRST_COMMIT,
    files.QUARANTINE,
    files.RESULT,
    files.PAGE,
    files.MEMORY,
    files.COMPUTE,
    files.TRACKING,
    files.ATTEMPTS,
    files.ATTEMPT,
    files.STARTS,
    files.DECISIONS,
    files.STARTED_OVER,
    files.STOP,
    files.RESIZE,
    files.INITIALISED,
    files.START_NOTE,
    files.EXPOSURE_SALT,
    files.FAILURE,
)
APPENDED = (files.QUARANTINE, files.SYSTEM, files.EVALUATIONS, files.ATTEMPTS, files.STARTS, files.DECISIONS)
"""Files that are appended to where they lie; the others are replaced by a rename."""

OTHERS = {"index.parquet": "a shard set", "digests.json": "an exported encoder", "bank.json": "a text bank"}
"""Files of ours that lie in no run: whoever starts one there has mixed up two options."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_KIND = (errno.EISDIR, errno.ENOTDIR, errno.ENXIO, errno.ELOOP)
_ELSEWHERE = (errno.EXDEV, errno.EBUSY)
AGAIN = "then run the same command again: it continues from the last committed checkpoint"


class RunDirectoryError(UserError):
    """A run directory that cannot be used as it is; nothing in it was lost."""


def check_layout(run_dir: Path) -> None:
    """Raises RunDirectoryError that names everything in `run_dir` that stands in the way of a start.

    A file where a folder is wanted or the other way round, a link to nothing, something that may not be written; and
    for a folder that is no run but a shard set, an exported encoder or a text bank.
    """
    check_text(run_dir)
    for name, what in OTHERS.items():
        if (run_dir / name).is_file():
            raise RunDirectoryError(
                f"run directory {run_dir} is {what} ({name})",
                "give a folder of its own to the run; nothing was changed",
            )
    wrong = [_wrong_kind(run_dir, name, name in FOLDERS) for name in ("", *FOLDERS, *FILES)]
    reasons = [reason for reason in wrong if reason]
    if reasons:
        raise RunDirectoryError(
            f"run directory {run_dir} cannot be used as it is:\n" + "\n".join(f"  - {reason}" for reason in reasons),
            f"move away or restore what is named, {AGAIN}",
        )
    closed = [
        path
        for path in (run_dir, *(run_dir / name for name in (*FOLDERS, *APPENDED)))
        if path.exists() and not os.access(path, os.W_OK)
    ]
    if closed:
        raise RunDirectoryError(
            f"run directory {run_dir}: {', '.join(str(path) for path in closed)} may not be written by this user",
            f"make it writable (a start as another user, as in a container, may have made it), {AGAIN}",
        )


def check_text(path: Path) -> None:
    """Raises RunDirectoryError for a folder whose name, or one above it, is no UTF-8 text.

    PyTorch's writer ends the whole process there, and no JSON file or MLflow store takes such a name.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise RunDirectoryError(
            f"the name of the folder {str(path)!a} is no UTF-8 text, and neither PyTorch nor MLflow writes there",
            "give a folder with another name; `convmv -f latin1 -t utf8` renames those of an old file system",
        ) from None


def _wrong_kind(run_dir: Path, name: str, folder: bool) -> str | None:
    path = run_dir / name
    folder = folder or not name
    if not os.path.lexists(path):
        return None
    if not path.exists():
        return f"{path} is a link to {os.readlink(path)}, which is not there"
    if folder and not path.is_dir():
        return f"{path} is a file, where a folder is wanted"
    if not folder and not path.is_file():
        return f"{path} is no file, where a file is wanted"
    return None


def write_error(run_dir: Path, error: OSError) -> RunDirectoryError:
    """A failed write below `run_dir` as a sentence: what, how many bytes are free, and the way out."""
    what = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    return RunDirectoryError(
        f"run directory {run_dir} cannot be written: {what}; {free_bytes(run_dir):,} bytes free",
        remedy_of(str(error)),
    )


@contextmanager
def writing(run_dir: Path) -> Iterator[None]:
    """What the disk refuses of the files below `run_dir` in here is a RunDirectoryError; other errors stay theirs."""
    try:
        yield
    except OSError as error:
        below = error.filename is None or str(error.filename).startswith(f"{run_dir}{os.sep}")
        if not (below and error.errno in (*_FULL, *_FORBIDDEN, *_KIND, *_ELSEWHERE, errno.EIO)):
            raise
        raise write_error(run_dir, error) from error


def remedy_of(problem: str) -> str:
    """The way out of a failed write, by what the operating system said of it."""
    if any(os.strerror(code) in problem for code in _FORBIDDEN):
        return f"make it writable for this user (or mount it writable), {AGAIN}"
    if any(os.strerror(code) in problem for code in _FULL):
        return f"free space or raise the quota, {AGAIN}"
    if any(os.strerror(code) in problem for code in _KIND):
        return f"move away what is named: it is no file, {AGAIN}"
    if any(os.strerror(code) in problem for code in _ELSEWHERE):
        return f"what is named lies on another disk or is a mount of its own: move it by hand, {AGAIN}"
    return (
        "free space, or use a run directory that every worker can write to and shares; then run again: "
        "it continues from the last committed checkpoint"
    )


def free_bytes(path: Path) -> int:
    """Bytes free where `path` lies or would lie."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
