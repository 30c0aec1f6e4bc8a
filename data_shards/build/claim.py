"""Who may write a shard set's folder: one build at a time, and only one that goes on with the plan that it was started
with."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import DataError, disk_error
from cardialign.data_shards.files import read_json, write_json
from cardialign.data_shards.shard_set.layout import BANKS, INDEX, MANIFEST, REJECTS, REPORTS, SHARDS, WORK_FOLDER

PLAN = "plan.json"
"""In the work folder: what an unfinished build was started with."""
_LOCK = "lock"


@contextlib.contextmanager
def claim(out: Path, overwrite: bool) -> Iterator[None]:
    """Hold `out` for this build alone: new, an unfinished build, or (with `overwrite`) a finished set, which stays
    whole until `begin`.

    The lock goes with the process, however it ends, so a killed build never has to be unlocked by hand. A build that
    fails before `begin` leaves the folder as it was.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, not a folder", "name a folder for the shard set")
    if (out / MANIFEST).exists() and not overwrite:
        raise DataError(
            f"{out} already holds a finished shard set", "choose another folder, or build with overwrite to replace it"
        )
    work = out / WORK_FOLDER
    made = [folder for folder in (work, out) if not folder.exists()]
    if out not in made and work in made and not (out / MANIFEST).exists() and any(out.iterdir()):
        raise DataError(
            f"{out} is not empty and holds no shard set; it will not be written to", "choose an empty or new folder"
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / _LOCK).open("w")
    except OSError as error:
        raise disk_error(error, out) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another build is writing {out} at this moment", "wait for it, or choose another folder"
            ) from error
        for leftover in (*out.glob(".*.tmp"), *work.glob(".*.tmp")):
            leftover.unlink(missing_ok=True)
        try:
            yield
        except BaseException:
            rest = [path for path in out.iterdir() if path != work]
            if work in made and not (work / PLAN).exists() and (not rest or out / MANIFEST in rest):
                shutil.rmtree(work, ignore_errors=True)
                if out in made and not rest:
                    out.rmdir()
            raise


def begin(out: Path, plan: dict[str, Any], overwrite: bool) -> None:
    """Go on with the unfinished build of the same plan, or start this one in a folder without remains of another.

    To be called within `claim`.

    Raises DataError when `out` holds an unfinished build of another plan, unless `overwrite`.
    """
    plan_file = out / WORK_FOLDER / PLAN
    if overwrite or not plan_file.exists():
        _empty(out)
        try:
            write_json(plan_file, plan, sort_keys=True)
        except OSError as error:
            raise disk_error(error, plan_file) from error
        return
    other = read_json(plan_file)
    if other is None:
        raise DataError(
            f"{plan_file} is damaged: the unfinished build in {out} cannot go on", "build with overwrite to start again"
        )
    differing = sorted(key for key in plan.keys() | other.keys() if plan.get(key) != other.get(key))
    if differing:
        raise DataError(
            f"{out} holds an unfinished build of another plan: {', '.join(differing)} differ",
            "build with the settings it was started with, choose another folder, or build with overwrite to start "
            "again",
        )


def _empty(out: Path) -> None:
    """Remove a shard set, finished or not, and nothing else.

    The manifest goes first, so that what is left is never taken for a whole set, and the plan last, so that no other
    build ever takes over sidecars or shards that are left.
    """
    (out / MANIFEST).unlink(missing_ok=True)
    for pattern in (f"{WORK_FOLDER}/shard-*.json", SHARDS, INDEX, REPORTS, REJECTS):
        for file in out.glob(pattern):
            file.unlink()
    shutil.rmtree(out / BANKS, ignore_errors=True)
    (out / WORK_FOLDER / PLAN).unlink(missing_ok=True)
