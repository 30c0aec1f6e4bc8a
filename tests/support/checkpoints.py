"""Committed checkpoints as small as can be: real manifests and trainer states, a few bytes in place of an engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.training.checkpoints import files
from cardialign.pretrain.training.checkpoints.files import MANIFEST
from cardialign.pretrain.training.checkpoints.state import TrainerState
from cardialign.pretrain.training.schedule import Plan

SELECTION = "selection"


def write_checkpoint(
    run_dir: Path, step: int, config: RunConfig | None = None, *, selection: str = SELECTION, plan: Plan | None = None
) -> Path:
    folder = files.temporary_path(run_dir, step)
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "model.pt").write_bytes(b"weights" * 100)
    resolved = json.loads(json.dumps((config or RunConfig()).resolved()))
    TrainerState(step, "digest", resolved, selection, 1, 1, plan=plan).write(folder)
    entries = files.seal(folder, files.files_below(folder))
    return files.commit(run_dir, step, entries, {"world_size": 2})


def state_of(step: int, config: RunConfig, world: int) -> TrainerState:
    return TrainerState(step, "digest", json.loads(json.dumps(config.resolved())), "selection", world, 1)


def content(path: Path) -> dict[str, Any]:
    """Every file of a checkpoint, and its manifest but for the time."""
    found: dict[str, Any] = {name: (path / name).read_bytes() for name in files.files_below(path)}
    manifest = json.loads((path / MANIFEST).read_text())
    return found | {MANIFEST: {key: manifest[key] for key in ("version", "step", "summary", "files")}}


def resealed(path: Path, state: bytes) -> None:
    """Another `trainer_state.json` in a committed checkpoint, whose digests say that nothing changed."""
    (path / files.STATE).write_bytes(state)
    run_dir, step = path.parent.parent, int(path.name.removeprefix(files.PREFIX))
    folder = files.temporary_path(run_dir, step)
    path.rename(folder)
    (folder / files.MANIFEST).unlink()
    files.commit(run_dir, step, files.seal(folder, files.files_below(folder)), {})


def flip(path: Path, at: int | None = None) -> None:
    """Another byte in the middle of a file, or at `at`."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if at is None else at] ^= 0x40
    path.write_bytes(raw)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Name -> content of everything below a folder (None for a folder), links included."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@contextmanager
def nothing_changes(folder: Path) -> Iterator[None]:
    before = snapshot(folder)
    yield
    assert snapshot(folder) == before
