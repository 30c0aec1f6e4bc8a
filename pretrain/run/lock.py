"""One process at a time drives a run directory: two would write over each other's configuration and checkpoints."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.files import parse_json
from cardialign.pretrain.run.files import LOCK
from cardialign.pretrain.run.layout import write_error

log = logging.getLogger(__name__)


class HeldError(UsageError):
    """Another process holds the folder."""


WAY_OUT = "wait for it, stop it with SIGTERM (it ends at a committed checkpoint), or give another --run-dir"


@contextlib.contextmanager
def locked_run(run_dir: Path, remedy: str = WAY_OUT) -> Iterator[int]:
    """Hold `run_dir`, which is made when it is not there, for this process; gives the descriptor of the lock.

    The lock dies with its process, and with the last child that was handed the descriptor: what a killed run leaves
    blocks nobody. A folder that was made here and is still
    empty goes again. A filesystem without locks is logged and used without.
    Raises HeldError naming the process and host of the run that holds it, with `remedy`; RunDirectoryError when the
    folder cannot be written.
    """
    made = not run_dir.exists()
    path = run_dir / LOCK
    try:
        descriptor = _locked(path, remedy)
    except OSError as error:
        raise write_error(run_dir, error) from None
    try:
        yield descriptor
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):
                run_dir.rmdir()


def _locked(path: Path, remedy: str) -> int:
    for last in (False,) * 50 + (True,):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # who held it took the empty folder away between our two calls
            if last:
                raise
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise HeldError(f"run directory {path.parent} is in use by {holder}", remedy) from None
        except OSError as error:
            log.warning("action=no-lock path=%s error=%s remark=nothing keeps a second run out", path, error)
        if _is(path, descriptor):
            break
        os.close(descriptor)  # its holder removed it between our two calls
    note = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a note
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode(), 0)
    return descriptor


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        note = parse_json(os.pread(descriptor, 4096, 0))
        return f"process {note['pid']} on {note['host']} since {note['since']}"
    except (ValueError, KeyError):  # it has the lock and is about to write its note
        return "another process"
