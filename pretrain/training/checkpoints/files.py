"""Checkpoints on disk: committed or not there at all.

checkpoints/.tmp-HOLDER-step-00000120/   being written (HOLDER: which worker group); the next start sweeps it away
checkpoints/step-00000120/         committed: every file fsynced and listed with its sha256, then the folder renamed
    manifest.json                  that list
    engine/                        DeepSpeed's files: weights, optimizer state, one shard per rank under ZeRO
    rng/rank-00000.pt              random number state of each rank
    trainer_state.json             step, digest of consumed sample ids, configuration, signal spec, fingerprints
    model.safetensors              the whole model's weights in float32, for those who want the model and not the run
checkpoints/quarantine/step-.../   found damaged: kept for a look, never read again, with the reason in quarantine.txt

This module knows names and digests only; `state`, `save` and `load` know what is in the files. DeepSpeed reads an
optimizer shard with flipped bytes without complaint and unpickles whatever it is given, so nothing is handed to it
before its digest has been checked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import Difference, FileFacts, differences, facts_of, names_below, sync
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import CHECKPOINTS

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
READABLE = (1, 2)
"""Version 2: the state holds the signal spec, and the configuration the sections `encoder:` and `method:`."""
MANIFEST = "manifest.json"
ENGINE, STATE, WEIGHTS = "engine", "trainer_state.json", "model.safetensors"
QUARANTINE = "quarantine"
PREFIX = "step-"
TEMPORARY = ".tmp-"


class CheckpointError(UserError):
    """A checkpoint that cannot be written or is not what was written."""


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


def rng_file(folder: Path, rank: int) -> Path:
    return folder / "rng" / f"rank-{rank:05d}.pt"


def files_below(folder: Path) -> list[str]:
    """Relative names of all files but the manifest, sorted."""
    return names_below(folder, (MANIFEST,))


def seal(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """fsync each named file and return name -> {sha256, bytes}: one rank's share of the manifest."""
    entries = {}
    for name in names:
        sync(folder / name)
        entries[name] = asdict(facts_of(folder / name))
    return entries


def commit(run_dir: Path, step: int, entries: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> Path:
    """Write the manifest and rename the temporary folder to its final name: the rename is the commit marker.

    Called by one process.
    """
    temporary, final = temporary_path(run_dir, step), committed_path(run_dir, step)
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
    if final.exists():
        quarantine(final, "replaced by a checkpoint of the same step")
    temporary.rename(final)
    sync(final.parent)
    return final


def read_manifest(path: Path) -> dict[str, Any]:
    """Raises CheckpointError when the manifest is absent, unreadable or of another version."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        version, files, own = manifest["version"], manifest["files"], manifest.pop("self")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {path}: {MANIFEST} cannot be read ({error})", "use an earlier checkpoint"
        ) from None
    if version not in READABLE or not isinstance(files, dict):
        raise CheckpointError(
            f"checkpoint {path}: format version {version}, this release reads {' and '.join(map(str, READABLE))}",
            "use the release that wrote it",
        )
    if own != _manifest_digest(manifest):
        raise CheckpointError(
            f"checkpoint {path}: {MANIFEST} changed since it was written", "use an earlier checkpoint"
        )
    return manifest


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def problems(path: Path) -> list[str]:
    """What is wrong with a committed checkpoint, file by file; empty when every byte is as written."""
    try:
        files = read_manifest(path)["files"]
    except CheckpointError as error:
        return [error.problem]
    listed = {name: FileFacts(entry["sha256"], entry["bytes"]) for name, entry in files.items()}
    return [f"{differs.name}: {_said(differs)}" for differs in differences(path, listed, (MANIFEST,))]


def _said(differs: Difference) -> str:
    return {
        "missing": "missing",
        "size": f"{differs.bytes} bytes instead of {differs.listed}",
        "content": "content changed since it was written (sha256 differs)",
        "unlisted": "not part of this checkpoint",
    }[differs.kind]


def verify(path: Path) -> None:
    """Raises CheckpointError that names the first bad file and how many there are."""
    found = problems(path)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise CheckpointError(
            f"checkpoint {path}: {found[0]}{more}", "use another checkpoint; this one is not safe to load"
        )


def _committed(run_dir: Path) -> list[Path]:
    folder = checkpoints_folder(run_dir)
    names = (p for p in folder.glob(f"{PREFIX}*") if p.is_dir() and p.name.removeprefix(PREFIX).isdigit())
    return sorted(names, key=lambda p: int(p.name.removeprefix(PREFIX)))


def list_checkpoints(run_dir: Path) -> list[CheckpointInfo]:
    """Committed checkpoints, oldest first; those with an unreadable manifest appear with an empty summary."""
    found = []
    for path in _committed(run_dir):
        try:
            manifest = read_manifest(path)
        except CheckpointError:
            manifest = {"files": {}, "created": "", "summary": {}}
        size = sum(entry["bytes"] for entry in manifest["files"].values())
        step = int(path.name.removeprefix(PREFIX))
        found.append(CheckpointInfo(step, path, size, manifest.get("created", ""), manifest.get("summary", {})))
    return found


def quarantine(path: Path, reason: str) -> Path:
    """Move a checkpoint to `quarantine/`, where nothing looks for it, and log why in one line. Nothing is deleted."""
    fence.check(path.parent.parent)
    folder = path.parent / QUARANTINE
    folder.mkdir(exist_ok=True)
    target = folder / path.name
    attempt = 1
    while target.exists():
        target = folder / f"{path.name}.{attempt}"
        attempt += 1
    path.rename(target)
    (target / "quarantine.txt").write_text(reason + "\n")
    log.warning("checkpoint=%s action=quarantine to=%s reason=%s", path, target, reason)
    return target


def newest_verified(run_dir: Path) -> Path | None:
    """Newest checkpoint whose every file is as written, or None; damaged ones on the way are moved to quarantine.

    Called by one process.
    """
    for path in reversed(_committed(run_dir)):
        found = problems(path)
        if not found:
            log.info("checkpoint=%s action=verified", path)
            return path
        quarantine(path, "; ".join(found[:3]))
    return None


def sweep(run_dir: Path) -> None:
    """Remove what an interrupted write or prune left behind: it was never committed."""
    for path in checkpoints_folder(run_dir).glob(f"{TEMPORARY}*"):
        fence.check(run_dir)
        log.info("checkpoint=%s action=sweep reason=never-committed", path)
        shutil.rmtree(path, ignore_errors=True)


def prune(run_dir: Path, keep: int) -> list[Path]:
    """Delete all but the `keep` newest committed checkpoints; returns what was deleted.

    A half-deleted one never looks committed.
    """
    removed = []
    for path in _committed(run_dir)[:-keep] if keep > 0 else []:
        fence.check(run_dir)
        doomed = path.with_name(f"{TEMPORARY}prune-{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        removed.append(path)
        log.info("checkpoint=%s action=prune keep=%d", path, keep)
    return removed


def free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
