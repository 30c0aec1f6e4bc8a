"""Who may write a shard set's folder: one build at a time, and only one that goes on with the plan that it was started with."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_shards.build_shard import WORK_FOLDER, disk_error
from data_shards.commit_set import MANIFEST
from data_shards.errors import DataError
from data_shards.shard_writer import commit_file

PLAN = "plan.json"
"""In the work folder: what an unfinished build was started with."""


@contextlib.contextmanager
def claim(out: Path, plan: dict[str, Any], overwrite: bool) -> Iterator[None]:
    """Hold `out` for this build alone: new, an unfinished build of the same plan, or (with `overwrite`) emptied.

    The lock goes with the process, however it ends, so a killed build never has to be unlocked by hand.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, not a folder", "name a folder for the shard set")
    if overwrite and out.exists():
        _empty(out)
    if (out / MANIFEST).exists():
        raise DataError(f"{out} already holds a finished shard set", "choose another folder, or build with overwrite to replace it")
    work = out / WORK_FOLDER
    if out.exists() and not work.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty and holds no shard set", "choose an empty or new folder")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another build is writing {out} at this moment", "wait for it, or choose another folder") from error
        _check_plan(out, plan)
        for leftover in (*out.glob(".*.tmp"), *work.glob(".*.tmp")):
            leftover.unlink(missing_ok=True)
        yield


def _check_plan(out: Path, plan: dict[str, Any]) -> None:
    plan_file = out / WORK_FOLDER / PLAN
    if not plan_file.exists():
        try:
            commit_file(plan_file, lambda temporary: temporary.write_text(json.dumps(plan, sort_keys=True)))
        except OSError as error:
            raise disk_error(error, plan_file) from error
        return
    other = json.loads(plan_file.read_text())
    differing = sorted(key for key in plan.keys() | other.keys() if plan.get(key) != other.get(key))
    if differing:
        raise DataError(
            f"{out} holds an unfinished build of another plan: {', '.join(differing)} differ",
            "build with the settings it was started with, choose another folder, or build with overwrite to start again",
        )


def _empty(out: Path) -> None:
    """Remove a shard set, finished or not, and nothing else: the manifest first, so that what is left is never taken for a whole set."""
    if not (out / MANIFEST).exists() and not (out / WORK_FOLDER).exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty and holds no shard set; it will not be overwritten", "choose an empty or new folder")
    (out / MANIFEST).unlink(missing_ok=True)
    for pattern in ("shard-*.tar", ".*.tmp", "index.parquet", "reports.parquet", "rejects.csv"):
        for file in out.glob(pattern):
            file.unlink()
    for folder in (WORK_FOLDER, "text_bank"):
        shutil.rmtree(out / folder, ignore_errors=True)
