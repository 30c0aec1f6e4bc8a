"""Whether other people could have written what a run goes on from.

Digests say that nothing changed since somebody sealed it, not who sealed it. DeepSpeed's files are pickles: who can
write a checkpoint can have whoever goes on from it run code.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path

from cardialign.data_shards.errors import UserError

TRUST = "CARDIALIGN_TRUST_RUN_DIR"
"""Environment variable: 1 says that everybody who may write into the run directory is trusted as its user is."""
_ACL = "system.posix_acl_access"


def told_to_trust() -> bool:
    return os.environ.get(TRUST, "") not in ("", "0")


def check_trusted(run_dir: Path, below: Iterable[Path]) -> None:
    """Raise UserError, in one sentence, where others may write `run_dir`, or one of the files and folders `below` it,
    unless this process is told to trust them. Raises OSError where one cannot be looked at."""
    if told_to_trust():
        return
    for path in (run_dir, *below):
        why = _writable_by(path)
        if why:
            what = "" if path == run_dir else f" in {path.relative_to(run_dir)}"
            raise UserError(
                f"the run in {run_dir} is not gone on from: {why}{what}, and whoever can write a checkpoint can have "
                "this account run code",
                f"take the right away (`chmod -R go-w {run_dir}`) or copy the run to a folder of your own; if you "
                f"trust everybody who may write there as yourself: --trust-run-dir, or {TRUST}=1",
            )


def _writable_by(path: Path) -> str:
    """Who else may write, as the beginning of a sentence; "" when nobody may."""
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0) and found.st_uid != _owner_of_new_files(path):
        return f"its owner is {_name(found.st_uid)}"
    if found.st_mode & stat.S_IWOTH:
        return "every user may write"
    if found.st_mode & stat.S_IWGRP and not _is_private(found.st_gid, path):
        return f"the group {_group(found.st_gid)} may write"
    return ""


def _owner_of_new_files(path: Path) -> int:
    """Some storage shows one owner for all files (a squashing NFS, a mounted bucket): it tells nobody apart."""
    folder = path if path.is_dir() else path.parent
    probe = folder / f".owner-{os.getpid()}"
    before = folder.stat()
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
        owner = probe.lstat().st_uid
        probe.unlink()
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    except OSError:
        return -1
    return owner


def _is_private(number: int, path: Path) -> bool:
    """Whether nobody else is in a group, as far as this machine knows: the group that many systems make for one user,
    or one that a container got as a number."""
    try:
        if _ACL in os.listxattr(path):  # then the bits of the group are those of everybody whom the list names
            return False
    except (OSError, AttributeError):  # a system or a storage without such lists
        pass
    try:
        group = grp.getgrgid(number)
    except KeyError:
        return number in (os.getegid(), *os.getgroups())
    me = _name(os.geteuid())
    return group.gr_name == me and set(group.gr_mem) <= {me}


def _name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
