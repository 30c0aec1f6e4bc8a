"""What can be said of a checkpoint before anything in it is used.

verified    every listed file is as it was written
damaged     a listed file is missing or has other content: put aside when the run goes on from an earlier one
unreadable  the storage does not answer, or does not permit it (EIO, ESTALE, EMFILE, a timeout): asked again for some
            seconds, then whoever asked stops; never moved
newer       written by a later release: left alone
foreign     something that only has the name of a checkpoint: left alone

Files that the manifest does not list (.DS_Store, .nfs*, ._x, Thumbs.db, a core dump) say nothing, and nobody reads
them. Nothing here moves or changes a file.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from cardialign.data_shards.files import Difference, difference
from cardialign.data_shards.shard_set.storage import LASTING
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.files import (
    ABSENT,
    ENGINE,
    MANIFEST,
    STATE,
    WEIGHTS,
    CheckpointError,
    NewerCheckpointError,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
Condition = Literal["verified", "damaged", "unreadable", "newer", "foreign"]
WAITS = [0.5, 1.0, 2.0, 4.0]
"""Seconds between two questions to a storage that does not answer."""


@dataclass(frozen=True)
class Finding:
    """The condition of one checkpoint. reasons: why it is not verified. names: the files that are listed."""

    step: int
    path: Path
    condition: Condition
    reasons: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def said(self) -> str:
        return f"{self.path.name}: {self.condition}" + (f" ({'; '.join(self.reasons[:3])})" if self.reasons else "")


def patiently(ask: Callable[[], T]) -> T:
    """The answer of `ask`, which is asked again while the storage does not answer; its last OSError otherwise."""
    for seconds in WAITS:
        try:
            return ask()
        except (*ABSENT, PermissionError):
            raise
        except OSError as error:
            if error.errno in LASTING:
                raise
            log.warning("action=ask-again seconds=%g error=%s", seconds, error)
            time.sleep(seconds)
    return ask()


def examine(path: Path, *, quick: bool = False) -> Finding:
    """The condition of the committed checkpoint `path`.

    quick: only sizes, and the content of `trainer_state.json`.
    """
    step = int(path.name.removeprefix(files.PREFIX))
    if path.is_symlink() and not path.exists():
        return Finding(step, path, "foreign", (f"a link to {os.readlink(path)}, which is not there",))
    try:
        manifest = patiently(lambda: files.read_manifest(path))
        listed = files.listed_files(manifest)
        if manifest.get("step", step) != step:
            return Finding(step, path, "foreign", (f"it is a copy of step {manifest['step']} under another name",))
        if STATE not in listed:  # it would be believed unseen
            return Finding(step, path, "damaged", (f"{MANIFEST} lists no {STATE}",))
        found = [
            (name, patiently(partial(difference, path / name, facts, quick=quick and name != STATE)))
            for name, facts in listed.items()
        ]
    except NewerCheckpointError as error:
        return Finding(step, path, "newer", (_short(error, path),))
    except CheckpointError as error:
        return Finding(step, path, "damaged" if _holds_ours(path) else "foreign", (_short(error, path),))
    except OSError as error:
        return Finding(step, path, "unreadable", (str(error),))
    wrong = tuple(_said(name, differs) for name, differs in found if differs is not None)
    return Finding(step, path, "damaged" if wrong else "verified", wrong, tuple(listed))


def _short(error: CheckpointError, path: Path) -> str:
    return error.problem.removeprefix(f"checkpoint {path}: ")


def _holds_ours(path: Path) -> bool:
    return any((path / name).exists() for name in (ENGINE, STATE, WEIGHTS, MANIFEST))


def _said(name: str, differs: Difference) -> str:
    said = {
        "missing": "missing",
        "size": f"{differs.bytes} bytes instead of {differs.listed}",
        "content": "content changed since it was written (sha256 differs)",
    }
    return f"{name}: {said[differs.kind]}"


def verify(path: Path) -> Finding:
    """The finding of a sound checkpoint.

    Raises CheckpointError that names the first thing that is wrong and how many there are.
    """
    found = examine(path)
    if found.condition == "verified":
        return found
    more = f" (and {len(found.reasons) - 1} more)" if len(found.reasons) > 1 else ""
    remedy = REMEDIES.get(found.condition, "use another checkpoint; this one is not safe to load")
    raise CheckpointError(f"checkpoint {path}: {found.reasons[0]}{more}", remedy)


REMEDIES: dict[Condition, str] = {
    "unreadable": "nothing was moved or changed: when the storage answers again (or, with 'Too many open files', after "
    "`ulimit -n` was raised), run the same command again",
    "newer": "use the release that wrote it",
}


def newest_sound(run_dir: Path, *, quick: bool = False) -> tuple[Finding | None, list[Finding]]:
    """The newest checkpoint that is as it was written, and what was passed over on the way to it, newest first.

    None when no checkpoint is: then all of them were passed over. A run that lives may commit and prune meanwhile: what
    it has taken away was not damaged, and is looked for again. Raises CheckpointError when one that may hold later
    steps cannot be judged now, or was written by a later release: an earlier one would silently undo its steps.
    """
    every = listed_now(run_dir)
    while True:
        found, passed = _newest_sound(run_dir, every, quick)
        before, every = every, listed_now(run_dir)
        if not passed or every == before:
            return found, passed


def listed_now(run_dir: Path) -> list[tuple[int, Path]]:
    """`files.committed`, asked patiently. Raises CheckpointError when the storage does not answer."""
    try:
        return patiently(lambda: files.committed(run_dir))
    except OSError as error:
        raise CheckpointError(
            f"the checkpoints under {run_dir} cannot be listed: {error}", REMEDIES["unreadable"]
        ) from None


def _newest_sound(run_dir: Path, every: list[tuple[int, Path]], quick: bool) -> tuple[Finding | None, list[Finding]]:
    passed: list[Finding] = []
    for _, path in reversed(every):
        found = examine(path, quick=quick)
        if found.condition == "unreadable":
            raise CheckpointError(f"checkpoint {path} cannot be read now: {found.reasons[0]}", REMEDIES["unreadable"])
        if found.condition == "verified":
            newer = next((each for each in passed if each.condition == "newer"), None)
            if newer is not None:
                raise CheckpointError(
                    f"the run in {run_dir} was continued by a later release: {newer.said()}; "
                    f"the newest that this one can read is {found.path.name}",
                    f"use the release that wrote it, or move {newer.path} away to go on from step {found.step}",
                )
            log.info("checkpoint=%s action=verified", path)
            return found, passed
        passed.append(found)
    return None, passed
