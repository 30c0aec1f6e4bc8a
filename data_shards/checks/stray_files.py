"""Files in the folder of a shard set that belong to nothing: harmless for readers, but somebody wonders what they are and what they cost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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

_LEFTOVER = re.compile(rf"\..+\.(tmp|building|vectors)|{re.escape(WORK_FOLDER)}")
_DERIVED = re.compile(r"distant-\d+\.npy")  # made from a bank after it was committed


def stray_files(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """One sentence for every file or folder that neither the manifest nor a text bank lists; shards are not looked at (a stray one is a problem)."""
    known = {MANIFEST, INDEX, REPORTS, REJECTS, BANKS}
    notes = [_note(folder, entry) for entry in _entries(folder) if entry.name not in known and not entry.match(SHARDS)]
    for bank in _entries(folder / BANKS):
        if not bank.is_dir() or bank.name.startswith("."):
            notes.append(_note(folder, bank))
            continue
        listed = _listed(bank)
        if listed is not None:
            notes += [
                _note(folder, file)
                for file in _entries(bank)
                if file.name not in listed and not _DERIVED.fullmatch(file.name)
            ]
    return notes


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _listed(bank: Path) -> set[str] | None:
    """What a bank's description lists; None when that cannot be read, which is a problem of its own."""
    try:
        return {BANK_FILE, *json.loads((bank / BANK_FILE).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(folder: Path, entry: Path) -> str:
    size = sum(file.lstat().st_size for file in [entry, *entry.rglob("*")] if not file.is_dir())
    if _LEFTOVER.fullmatch(entry.name):
        why = "left by a build that was interrupted or is still running; delete it when none is running"
    else:
        why = "belongs to nothing here and is not read"
    return f"{entry.relative_to(folder)} ({size:,} bytes): {why}"
