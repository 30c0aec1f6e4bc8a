"""Checkpoints on disk: committed or not there at all.

checkpoints/.tmp-HOLDER-step-00000120/   being written (HOLDER: which worker group); the next start sweeps it away
    receipts/rank-00000.json       which files a rank has written, where it is written behind the steps (`background`)
checkpoints/.tmp-HOLDER-survivors-step-...   the same, by those who are left of a group (`survivors`)
checkpoints/step-00000120/         committed: every file fsynced and listed with its sha256, then the folder renamed
    manifest.json                  that list
    engine/                        DeepSpeed's files: weights, optimizer state, one shard per rank under ZeRO
    rng/rank-00000.pt              random number state of each rank
    trainer_state.json             step, digest of consumed sample ids, configuration, signal spec, fingerprints
    model.safetensors              the whole model's weights in float32, for those who want the model and not the run
checkpoints/quarantine/step-.../   found damaged: kept for a look, never read again, with the reason in quarantine.txt

This module knows names and digests only; `condition` tells sound checkpoints from others, `state`, `save` and `load`
know what is in the files. DeepSpeed reads an optimizer shard with flipped bytes without complaint, picks files by
pattern and unpickles whatever it is given: it is given links to listed files whose digests have been checked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import (
    LARGEST_JSON,
    FileFacts,
    facts_of,
    is_count,
    is_sha256,
    names_below,
    parse_json,
    read_bytes,
    sync,
    write_json,
)
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import CHECKPOINTS, FIRST_COMMIT
from cardialign.pretrain.run.integrity import is_litter

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
READABLE = (1, 2)
"""Version 2: the state holds the signal spec, and the configuration the sections `encoder:` and `method:`."""
MANIFEST = "manifest.json"
ENGINE, STATE, WEIGHTS = "engine", "trainer_state.json", "model.safetensors"
QUARANTINE, NOTE = "quarantine", "quarantine.txt"
REPLACED = "replaced by a checkpoint of the same step"
PREFIX = "step-"
COMMITTED = re.compile(PREFIX + "([0-9]+)")
TEMPORARY = ".tmp-"
_UNFINISHED = re.compile(
    re.escape(TEMPORARY) + r"(?:prune-|read-|[^/]{1,8}\.[0-9]+-)?(?:universal-|survivors-)?step-[0-9]+"
)
_TOP = frozenset((ENGINE, "rng", "receipts", STATE, WEIGHTS, MANIFEST))
"""What lies at the top of a checkpoint, finished or not."""
_BEING_WRITTEN = re.compile(rf"\.(?:{'|'.join(map(re.escape, sorted(_TOP)))})\..+\.tmp")
"""And what a process that ended while it wrote one of these has left of it (`data_shards.files.temporary_path`)."""
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors that say that a file is not there; any other OSError says that the storage does not answer."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written or is not what was written."""


class NewerCheckpointError(CheckpointError):
    """A checkpoint of a later release."""


@dataclass(frozen=True)
class CheckpointInfo:
    """One committed checkpoint as its manifest describes it (not verified)."""

    step: int
    path: Path
    bytes: int
    created: str
    summary: dict[str, Any]


def checkpoints_folder(run_dir: Path) -> Path:
    return Path(run_dir) / CHECKPOINTS


def committed_path(run_dir: Path, step: int) -> Path:
    return checkpoints_folder(run_dir) / f"{PREFIX}{step:08d}"


def temporary_path(run_dir: Path, step: int) -> Path:
    return checkpoints_folder(run_dir) / f"{TEMPORARY}{fence.label(run_dir)}{PREFIX}{step:08d}"


def survivors_path(run_dir: Path, step: int) -> Path:
    """Where the survivors of a group write: their last checkpoint may be on its way to the same step."""
    return checkpoints_folder(run_dir) / f"{TEMPORARY}{fence.label(run_dir)}survivors-{PREFIX}{step:08d}"


def rng_file(folder: Path, rank: int) -> Path:
    return folder / "rng" / f"rank-{rank:05d}.pt"


def files_below(folder: Path) -> list[str]:
    """Relative names of all files but the manifest, sorted."""
    return names_below(folder, (MANIFEST,))


def sizes_below(folder: Path) -> dict[str, int]:
    """What changes while files are written; of a folder that is renamed or taken away meanwhile what is still there."""
    found: dict[str, int] = {}
    for place, _, names in os.walk(folder):  # unlike a glob, it takes a folder that is gone for an empty one
        for name in names:
            path = os.path.join(place, name)
            try:
                found[path] = os.stat(path).st_size
            except OSError:
                continue
    return found


def seal(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """fsync each named file and return name -> {sha256, bytes}: one rank's share of the manifest."""
    entries = {}
    for name in names:
        sync(folder / name)
        entries[name] = asdict(facts_of(folder / name))
    return entries


def commit(
    run_dir: Path, step: int, entries: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any],
    temporary: Path | None = None,
) -> Path:  # fmt: skip
    """Write the manifest and rename the temporary folder to its final name: the rename is the commit marker.

    Called by one process. temporary: another folder than `temporary_path` has the files.
    """
    temporary, final = temporary or temporary_path(run_dir, step), committed_path(run_dir, step)
    manifest = {
        "version": FORMAT_VERSION,
        "step": step,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "summary": dict(summary),
        "files": dict(sorted(entries.items())),
    }
    manifest["self"] = _manifest_digest(manifest)
    path = temporary / MANIFEST
    path.write_text(json.dumps(manifest, indent=1))
    sync(path)
    for folder in {temporary, *(p for p in temporary.rglob("*") if p.is_dir())}:
        sync(folder)
    fence.check(run_dir)
    if os.path.lexists(final):
        quarantine(final, REPLACED)
    temporary.rename(final)
    sync(final.parent)
    _note_first(run_dir, step)
    return final


def _note_first(run_dir: Path, step: int) -> None:
    """Beside the checkpoints, where who loses them all does not lose it: that there were some."""
    try:
        if not (run_dir / FIRST_COMMIT).exists():
            write_json(run_dir / FIRST_COMMIT, {"step": step})
    except OSError as error:  # it is committed all the same; the next one notes it
        log.warning("checkpoint=%s action=no-note error=%s", committed_path(run_dir, step), error)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, of the form that `commit` writes.

    Raises NewerCheckpointError for one of a later release, CheckpointError when it is absent or not what was written,
    OSError when the storage does not answer.
    """
    try:
        raw = read_bytes(path / MANIFEST, LARGEST_JSON)
    except ABSENT as error:
        raise _unreadable(path, str(error.strerror)) from None
    try:
        manifest = parse_json(raw.decode("utf-8"))
        version, files, own = manifest["version"], manifest["files"], manifest.pop("self")
    except RecursionError:
        raise _unreadable(path, "nested too deeply") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from None
    if version not in READABLE and not any(_manifest_digest({**manifest, "version": v}) == own for v in READABLE):
        raise NewerCheckpointError(
            f"checkpoint {path}: format version {str(version)[:40]}, this release reads "
            f"{' and '.join(map(str, READABLE))}",
            "use the release that wrote it",
        )
    if own != _manifest_digest(manifest):
        raise CheckpointError(
            f"checkpoint {path}: {MANIFEST} changed since it was written", "use an earlier checkpoint"
        )
    if not _well_formed(files) or not isinstance(manifest.get("summary", {}), dict):
        raise _unreadable(path, "its list of files is not one of name, sha256 and bytes")
    return manifest


def _unreadable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {path}: {MANIFEST} cannot be read ({why})", "use an earlier checkpoint")


def _well_formed(files: object) -> bool:
    """A manifest is data: the names in it stay below the checkpoint."""
    return isinstance(files, dict) and all(
        name.isprintable()
        and not PurePosixPath(name).is_absolute()
        and ".." not in PurePosixPath(name).parts
        and isinstance(entry, dict)
        and is_sha256(entry.get("sha256"))
        and is_count(entry.get("bytes"), 1 << 62)
        for name, entry in files.items()
    )


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def listed_files(manifest: Mapping[str, Any]) -> dict[str, FileFacts]:
    """Name -> facts of every file that a manifest lists."""
    return {name: FileFacts(entry["sha256"], entry["bytes"]) for name, entry in manifest["files"].items()}


def committed(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything that is called like a committed checkpoint, oldest first.

    Raises OSError when the storage does not answer: an empty list is no answer.
    """
    folder = checkpoints_folder(run_dir)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = [(int(match[1]), folder / name) for name in names if (match := COMMITTED.fullmatch(name))]
    return sorted((step, path) for step, path in found if path.is_dir() or path.is_symlink())


def list_checkpoints(run_dir: Path) -> list[CheckpointInfo]:
    """Committed checkpoints, oldest first; those with an unreadable manifest appear with an empty summary."""
    found = []
    for step, path in committed(run_dir):
        try:
            manifest = read_manifest(path)
        except (CheckpointError, OSError):
            manifest = {"files": {}, "created": "", "summary": {}}
        size = sum(entry["bytes"] for entry in manifest["files"].values())
        found.append(CheckpointInfo(step, path, size, str(manifest.get("created", "")), manifest.get("summary", {})))
    return found


def quarantine(path: Path, reason: str) -> Path:
    """Move a checkpoint, or what has its name, to `quarantine/`, where nothing looks for it; log why in one line.

    Nothing is deleted.
    """
    fence.check(path.parent.parent)
    folder = path.parent / QUARANTINE
    folder.mkdir(exist_ok=True)
    target = folder / path.name
    attempt = 1
    while os.path.lexists(target):
        target = folder / f"{path.name}.{attempt}"
        attempt += 1
    path.rename(target)
    own = target.is_dir() and not target.is_symlink()  # a note of ours goes into no folder of others
    (target / NOTE if own else folder / f"{target.name}.txt").write_text(reason + "\n")
    log.warning("checkpoint=%s action=quarantine to=%s reason=%s", path, target, reason)
    return target


def links_of(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}read-{path.name}")


def linked(path: Path, names: Iterable[str]) -> Path:
    """A folder of links to the named files of a checkpoint, for readers that take whatever lies beside them.

    It is temporary: the next sweep removes it. Where the file system knows no links it is the checkpoint itself.
    Raises CheckpointError when that holds other files, too.
    """
    names = list(names)
    folder = links_of(path)
    remove(folder)
    try:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _link((path / name).resolve(), folder / name)
    except OSError as error:
        remove(folder)
        others = sorted(set(files_below(path)) - set(names))
        if others:
            raise CheckpointError(
                f"checkpoint {path} holds files that are not part of it ({', '.join(others[:3])}), and no links to its "
                f"own files can be made beside it: {error}",
                "move these files away, then run the same command again",
            ) from None
        return path
    return folder


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        os.symlink(source, target)


def remove(path: Path) -> None:
    """Delete something temporary of ours, whatever it has become: a folder, a file, a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_unfinished(path: Path) -> bool:
    """Whether a folder has the name and the content of one that a write or a prune left behind: whoever deletes it
    deletes nothing of anybody else's."""
    if not _UNFINISHED.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
        return False
    return all(
        each.name in _TOP or is_litter(each.name) or _BEING_WRITTEN.fullmatch(each.name) for each in path.iterdir()
    )


def sweep(run_dir: Path) -> None:
    """Remove what an interrupted write or prune left behind: it was never committed.

    What only has the name of such a folder is not ours: it goes to quarantine.
    """
    for path in checkpoints_folder(run_dir).glob(f"{TEMPORARY}*"):
        fence.check(run_dir)
        if not is_unfinished(path):
            quarantine(path, "no folder of ours: it stood where a checkpoint is written")
            continue
        log.info("checkpoint=%s action=sweep reason=never-committed", path)
        shutil.rmtree(path, ignore_errors=True)
