"""One process at a time drives a run directory: two would write over each other's configuration and checkpoints.

A lock of the file system, which dies with its process. Some file systems have none, and some keep it to one host
without a word (SMB, FUSE, Lustre without `flock`): the holder's note in the lock file beats, too, and whoever finds the
note of another host looks for a while whether it still does. No clock of one host is held against another's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.files import read_json
from cardialign.pretrain.run.files import LOCK
from cardialign.pretrain.run.layout import write_error

log = logging.getLogger(__name__)


BEAT_SECONDS = 2.0
WATCH_SECONDS = 15.0
"""A holder whose note has not changed for so long is gone: some beats, and what a network file system may be late."""
LOOK_SECONDS = 0.25
NOTE_BYTES = 512
"""Notes have one length, so that a beat is one write over the last one."""


class HeldError(UsageError):
    """Another process holds the folder."""


WAY_OUT = "wait for it, stop it with SIGTERM (it ends at a committed checkpoint), or give another --run-dir"


@contextlib.contextmanager
def locked_run(run_dir: Path, remedy: str = WAY_OUT) -> Iterator[int]:
    """Hold `run_dir`, which is made when it is not there, for this process; gives the descriptor of the lock.

    The lock dies with its process, and with the last child that was handed the descriptor: what a killed run leaves
    blocks nobody, and another host for `WATCH_SECONDS`. A folder that was made here and is still empty goes again.
    Raises HeldError naming the process and host of the run that holds it, with `remedy`; RunDirectoryError when the
    folder cannot be written.
    """
    made = not run_dir.exists()
    path = run_dir / LOCK
    try:
        lease = _Lease(path, _locked(path, remedy), remedy)
    except OSError as error:
        raise write_error(run_dir, error) from None
    try:
        yield lease.descriptor
    finally:
        if lease.end():
            path.unlink(missing_ok=True)
        os.close(lease.descriptor)
        if made:
            with contextlib.suppress(OSError):
                run_dir.rmdir()


class _Lease(threading.Thread):
    """The note of this process in a lock file that it holds, and its beat.

    Raises HeldError when another process has written its own at the same time, where no lock keeps the two apart.
    """

    def __init__(self, path: Path, locked: tuple[int, bool], remedy: str) -> None:
        super().__init__(name=f"lease-{path.parent.name}", daemon=True)
        self.path, (self.descriptor, sure) = path, locked
        self.note: dict[str, Any] = {"pid": os.getpid(), "host": platform.node(), "boot": _boot(), "beat": 0}
        self.note["since"] = time.strftime("%Y-%m-%d %H:%M:%S")
        self.over = threading.Event()
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a note
            os.ftruncate(self.descriptor, 0)
            self._write()
        if not sure and self._taken(wait=2 * LOOK_SECONDS):
            holder = _said(read_json(path))
            os.close(self.descriptor)
            raise HeldError(f"run directory {path.parent} is in use by {holder}", remedy)
        self.start()

    def _write(self) -> None:
        os.pwrite(self.descriptor, json.dumps(self.note).encode().ljust(NOTE_BYTES), 0)
        os.fsync(self.descriptor)  # a network file system shows other hosts what has been flushed

    def _taken(self, wait: float = 0.0) -> bool:
        time.sleep(wait)
        there = read_json(self.path)
        return there is not None and (there.get("pid"), there.get("boot")) != (self.note["pid"], self.note["boot"])

    def run(self) -> None:
        while not self.over.wait(BEAT_SECONDS):
            if self._taken():  # this process slept for so long that it was believed dead: the fence ends its run
                log.warning("action=lost-lease path=%s holder=%s", self.path, _said(read_json(self.path)))
                return
            self.note["beat"] += 1
            with contextlib.suppress(OSError):
                self._write()

    def end(self) -> bool:
        """Stop beating; whether the file is still this process's to remove."""
        self.over.set()
        self.join()
        return not self._taken()


def _locked(path: Path, remedy: str) -> tuple[int, bool]:
    """Descriptor of the lock file at `path`, which nobody else holds, and whether the file system says so itself."""
    for last in (False,) * 50 + (True,):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # who held it took the empty folder away between our two calls
            if last:
                raise
            continue
        locks = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _said(read_json(path))
            os.close(descriptor)
            raise HeldError(f"run directory {path.parent} is in use by {holder}", remedy) from None
        except OSError as error:
            log.warning("action=no-lock path=%s error=%s remark=the note in it has to do", path, error)
            locks = False
        note = read_json(path)
        elsewhere = note is not None and (not locks or note.get("boot") != _boot())
        if elsewhere and _beats_on(path, note or {}):
            os.close(descriptor)
            raise HeldError(f"run directory {path.parent} is in use by {_said(note)}", remedy)
        if _is(path, descriptor):
            break
        os.close(descriptor)  # its holder removed it between our two calls
    return descriptor, locks and not elsewhere


def _beats_on(path: Path, note: dict[str, Any]) -> bool:
    """Whether the holder of another host, or of a file system without locks, still changes its note."""
    if "beat" not in note:
        return False
    log.warning("action=watch-lease path=%s holder=%s seconds=%g", path, _said(note), WATCH_SECONDS)
    deadline = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        now = read_json(path)
        if now is None:  # it has ended meanwhile
            return False
        if now != note:
            return True
    return False


def _boot() -> str:
    """Names this start of this machine's kernel: processes with the same one share the locks of a file system."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _said(note: dict[str, Any] | None) -> str:
    if note is None or not {"pid", "host", "since"} <= note.keys():  # it is about to write its note
        return "another process"
    return f"process {note['pid']} on {note['host']} since {note['since']}"
