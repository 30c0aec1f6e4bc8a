"""Who may write a shard set's folder: one build at a time, and only one that goes on with the plan that it was started
with."""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import DataError, disk_error
from cardialign.data_shards.files import is_plain_name, read_json, write_json
from cardialign.data_shards.shard_set.layout import (
    BANK_FILE,
    BANKS,
    INDEX,
    MANIFEST,
    REJECTS,
    REPORTS,
    SHARDS,
    WORK_FOLDER,
)

PLAN = "plan.json"
"""In the work folder: what an unfinished build was started with."""
_LOCK = "lock"
_EMPTYING = "emptying"
"""In the work folder while a set is removed: what is left of it is ours, though neither manifest nor plan says so."""
_NAME = re.compile(r"shard-\d{6,}\.tar")


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
            f"{out} already holds a finished shard set", "choose another folder, or replace it: --overwrite"
        )
    work = out / WORK_FOLDER
    made = [folder for folder in (work, out) if not folder.exists()]
    if out not in made and not _holds_a_set(out) and any(path != work for path in out.iterdir()):
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


def _holds_a_set(out: Path) -> bool:
    """Whether a folder is that of a set of ours, finished or not: a file of one name alone, which others have too, is
    no sign of it."""
    if any((out / WORK_FOLDER / name).is_file() for name in (PLAN, _EMPTYING)):
        return True  # a lock alone is of a build that was killed while it listed, and had made nothing yet
    values = read_json(out / MANIFEST)
    if values is None:  # none, or a damaged one of a set whose files are there
        return (out / MANIFEST).is_file() and any(_NAME.fullmatch(path.name) for path in out.glob(SHARDS))
    return "schema_version" in values and "fingerprint" in values


def begin(out: Path, plan: dict[str, Any], overwrite: bool) -> None:
    """Go on with the unfinished build of the same plan, or start this one in a folder without remains of another.

    To be called within `claim`.

    Raises DataError when `out` holds an unfinished build of another plan, unless `overwrite`.
    """
    plan_file = out / WORK_FOLDER / PLAN
    if overwrite or not plan_file.exists():
        try:
            own = _own_shards(out)
            write_json(out / WORK_FOLDER / _EMPTYING, {"shards": own})
            _empty(out, own)
            write_json(plan_file, plan, sort_keys=True)
            (out / WORK_FOLDER / _EMPTYING).unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, plan_file) from error
        return
    other = read_json(plan_file)
    if other is None:
        raise DataError(
            f"{plan_file} is damaged: the unfinished build in {out} cannot go on",
            "build with --overwrite to start again",
        )
    differing = sorted(key for key in plan.keys() | other.keys() if plan.get(key) != other.get(key))
    if differing:
        raise DataError(
            f"{out} holds an unfinished build of another plan: {', '.join(differing)} differ",
            "build with the settings it was started with, choose another folder, or build with --overwrite to start "
            "again",
        )


def _own_shards(out: Path) -> list[str]:
    """The shards in a folder that builds of ours made: those that its manifest lists, or that the plan of an unfinished
    build, or a removal that was cut off, is about; all that are called so where one of these is damaged."""
    found = sorted(path.name for path in out.glob(SHARDS) if _NAME.fullmatch(path.name))
    own: set[str] = set()
    for place, names in (
        (out / MANIFEST, lambda values: [shard["name"] for shard in values["shards"]]),
        (out / WORK_FOLDER / PLAN, _planned),
        (out / WORK_FOLDER / _EMPTYING, lambda values: values["shards"]),
    ):
        try:
            own.update(map(str, names(read_json(place) or {})) if place.exists() else ())
        except (KeyError, TypeError, ValueError):
            return found
    return [name for name in found if name in own]


def _planned(plan: dict[str, Any]) -> list[str]:
    shards = -(-int(plan["entries"]["number"]) // max(1, int(plan["records_per_shard"])))
    return [f"shard-{number:06d}.tar" for number in range(shards)]


def _empty(out: Path, shards: list[str]) -> None:
    """Remove a shard set, finished or not, and nothing else that somebody keeps in its folder.

    The manifest goes first, so that what is left is never taken for a whole set, and the plan last, so that no other
    build ever takes over sidecars or shards that are left.
    """
    (out / MANIFEST).unlink(missing_ok=True)
    for file in (*out.glob(f"{WORK_FOLDER}/shard-*.json"), *(out / name for name in shards)):
        file.unlink()
    for name in (INDEX, REPORTS, REJECTS):
        (out / name).unlink(missing_ok=True)
    for description in (out / BANKS).glob(f"*/{BANK_FILE}"):
        _remove_bank(description)
    with contextlib.suppress(OSError):
        (out / BANKS).rmdir()
    (out / WORK_FOLDER / PLAN).unlink(missing_ok=True)


def _remove_bank(description: Path) -> None:
    """Remove the files that a bank lists; what lies beside them stays, and is no bank any more."""
    if not description.is_file():
        return
    values = read_json(description) or {}
    parts = [part for part in (values.get("files"), values.get("derived")) if isinstance(part, dict)]
    description.unlink()
    for name in filter(is_plain_name, (name for part in parts for name in part)):
        with contextlib.suppress(IsADirectoryError, FileNotFoundError):
            (description.parent / name).unlink()
    with contextlib.suppress(OSError):
        description.parent.rmdir()
