"""Which checkpoints stay when older ones go: never is the only one deleted that a run can go on from.

The newest N stay, and the one that `best.json` names, beside whose encoder the run itself can go on. Whether those that
stay are sound is asked of their bytes, unless one of them has just been written; when none is, the newest that is
sound stays, too.

A folder goes only when everything says that it is a checkpoint of ours and nothing else: its manifest has its own
digest, is of the step in the folder's name and lists the state of a trainer, and no other file lies in the folder. What
this release cannot read, a copy under another name and a folder in which somebody keeps files are left alone.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cardialign.data_shards.files import read_json
from cardialign.data_shards.shown import shown
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import BEST_NOTE
from cardialign.pretrain.run.integrity import is_litter
from cardialign.pretrain.training.checkpoints.condition import REMEDIES, examine
from cardialign.pretrain.training.checkpoints.files import (
    MANIFEST,
    STATE,
    TEMPORARY,
    CheckpointError,
    checkpoints_folder,
    committed,
    files_below,
    is_unfinished,
    quarantine,
    read_manifest,
    remove,
)

log = logging.getLogger(__name__)
PRUNED = f"{TEMPORARY}prune-"


@dataclass(frozen=True)
class Fate:
    """What becomes of a checkpoint. why: "newest", "best", "only sound" or "older"."""

    step: int
    path: Path
    stays: bool
    why: str


def fates(run_dir: Path, keep: int, *, written: Path | None = None) -> list[Fate]:
    """Of every checkpoint of this release, oldest first; nothing is changed.

    keep: at least 1. written: one whose digests were taken just now. Without it every checkpoint that would stay is
    read, until a sound one is found. Raises CheckpointError when one cannot be judged now, OSError as `committed`.
    """
    own = [(step, path) for step, path in committed(run_dir) if not_ours(step, path) is None]
    best = _best(run_dir)
    stay = {path: "newest" for _, path in own[-keep:]}
    stay |= {path: "best" for step, path in own if path not in stay and best == (step, _mark(path))}
    if written not in stay and not any(_sound(path) for _, path in reversed(own) if path in stay):
        only = next((path for _, path in reversed(own) if path not in stay and _sound(path)), None)
        stay |= {} if only is None else {only: "only sound"}
    return [Fate(step, path, path in stay, stay.get(path, "older")) for step, path in own]


def prune(run_dir: Path, keep: int, *, written: Path | None = None) -> list[Path]:
    """Delete the checkpoints that do not stay (`fates`); returns what was deleted.

    A half-deleted one never looks committed. Raises as `fates`, and OSError for one that cannot be deleted.
    """
    fence.check(run_dir)
    removed = []
    for each in fates(run_dir, keep, written=written):
        if each.stays:
            continue
        fence.check(run_dir)
        doomed = each.path.with_name(f"{PRUNED}{each.path.name}")
        if os.path.lexists(doomed):  # of an earlier prune that was interrupted, or nothing of ours
            remove(doomed) if is_unfinished(doomed) else quarantine(doomed, "it stood where a checkpoint is pruned")
        each.path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        removed.append(each.path)
        log.info("checkpoint=%s action=prune keep=%d", each.path, keep)
    return removed


def unfinished(run_dir: Path) -> list[Path]:
    """What a prune that was interrupted has left."""
    return sorted(path for path in checkpoints_folder(run_dir).glob(f"{PRUNED}*") if is_unfinished(path))


def _best(run_dir: Path) -> tuple[object, object]:
    note = read_json(run_dir / BEST_NOTE) or {}
    return note.get("step"), note.get("checkpoint")


def _mark(path: Path) -> object:
    return (read_json(path / MANIFEST) or {}).get("self")


def _sound(path: Path) -> bool:
    found = examine(path)
    if found.condition == "unreadable":
        raise CheckpointError(f"checkpoint {path} cannot be read now: {found.reasons[0]}", REMEDIES["unreadable"])
    return found.condition == "verified"


def not_ours(step: int, path: Path) -> str | None:
    """Why something that is called like a checkpoint is never deleted; None for a checkpoint of ours, sound or not."""
    if path.is_symlink():
        return "it is a link"
    try:
        manifest = read_manifest(path)
        others = [name for name in files_below(path) if name not in manifest["files"] and not is_litter(name)]
    except (CheckpointError, OSError):
        return f"its {MANIFEST} cannot be read"
    if manifest.get("step", step) != step:
        return "it is a copy under another name"
    if STATE not in manifest["files"]:
        return f"its {MANIFEST} lists no {STATE}"
    return f"it holds files that are no part of it ({', '.join(map(shown, others[:3]))})" if others else None
