"""The digest list of an exported encoder: what was written is what is read, file by file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import FileFacts, differences, facts_below, write_json

EXPORT_VERSION = 2
READABLE = (1, 2)
"""Version 2: the configuration has the sections `encoder:` and `method:`; the report head may be absent."""
DIGESTS = "digests.json"


def file_digests(folder: Path) -> dict[str, str]:
    """Relative name -> sha256 of every file below `folder` but the digest list itself."""
    return {name: facts.sha256 for name, facts in facts_below(folder, (DIGESTS,)).items()}


def write_digests(folder: Path) -> None:
    """List every file below `folder` in its `digests.json`: the last file of an export to be written."""
    write_json(folder / DIGESTS, {"version": EXPORT_VERSION, "files": file_digests(folder)}, indent=2)


def verify_export(folder: Path) -> str:
    """Check every file against `digests.json`; returns the digest of the whole export (sha256 of that list).

    Raises UserError that names each changed, missing or extra file, or says that this is no exported encoder.
    """
    folder = Path(folder)
    try:
        listed = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        version, files = listed["version"], dict(listed["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} is not an exported encoder: {DIGESTS} is missing or unreadable",
            "give the folder that `export` wrote",
        ) from None
    if version not in READABLE:
        raise UserError(
            f"{folder} has export version {version}, this release reads {' and '.join(map(str, READABLE))}",
            "use the release that wrote it",
        )
    found = differences(folder, {name: FileFacts(sha256) for name, sha256 in files.items()}, (DIGESTS,))
    said = {
        "missing": "missing",
        "content": "content changed (sha256 differs)",
        "unlisted": "not part of the export",
    }
    wrong = [f"{differs.name}: {said[differs.kind]}" for differs in found]
    if wrong:
        raise UserError(
            f"exported encoder {folder} is not as it was written:\n" + "\n".join(f"  - {line}" for line in wrong),
            "fetch it again",
        )
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def refuse_to_replace(out: Path, overwrite: bool) -> None:
    """Raise UserError unless `out` is free, empty, or (with `overwrite`) an encoder: nothing else is ever replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / DIGESTS).is_file():
        raise UserError(f"{out} holds something that is no encoder; it is left alone", "give another folder")
    if not overwrite:
        raise UserError(f"{out} exists already", "give another folder, or --overwrite")
