"""The digest list of an exported encoder: what was written is what is read, file by file.

The digest of an encoder is that of its list of files, so that equal files make equal digests. When it was written is
said beside that list and is no part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import Difference, FileFacts, differences, facts_below, read_json, write_json

EXPORT_VERSION = 2
READABLE = (1, 2)
"""Version 2: the configuration has the sections `encoder:` and `method:`; the report head may be absent."""
DIGESTS = "digests.json"
LITTER = re.compile(r"\.DS_Store|\._.*|\.nfs[0-9a-fA-F]*|Thumbs\.db|desktop\.ini|\.directory|.*~|\..*\.sw[a-p]")
"""Names of files that file managers, editors and NFS leave in every folder: nobody reads them, nobody misses them."""


def file_digests(folder: Path) -> dict[str, str]:
    """Relative name -> sha256 of every file below `folder` but the digest list itself."""
    return {name: facts.sha256 for name, facts in facts_below(folder, (DIGESTS,)).items()}


def write_digests(folder: Path) -> None:
    """List every file below `folder` in its `digests.json`: the last file of an export to be written."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    values = {"version": EXPORT_VERSION, "created": created, "files": file_digests(folder)}
    write_json(folder / DIGESTS, values, indent=2)


def verify_export(folder: Path) -> str:
    """Check every file against `digests.json`; returns the digest of the whole export (sha256 of that list).

    Raises UserError that names each changed, missing or extra file, or says that this is no exported encoder. What file
    managers leave in every folder (`LITTER`) is passed over.
    """
    folder = Path(folder)
    try:
        listed = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        version, files = listed["version"], dict(listed["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
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
    wrong = [f"{differs.name}: {said[differs.kind]}" for differs in found if not _litter(differs)]
    if wrong:
        raise UserError(
            f"exported encoder {folder} is not as it was written:\n" + "\n".join(f"  - {line}" for line in wrong),
            "fetch it again",
        )
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _litter(differs: Difference) -> bool:
    return differs.kind == "unlisted" and LITTER.fullmatch(Path(differs.name).name) is not None


def refuse_to_replace(out: Path, overwrite: bool) -> None:
    """Raise UserError unless `out` is free, empty, or (with `overwrite`) an encoder and nothing else.

    A file that the encoder's list does not name is somebody's: it is named, and nothing is replaced.
    """
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    listed = (read_json(out / DIGESTS) or {}).get("files") if out.is_dir() else None
    if not isinstance(listed, dict):
        raise UserError(f"{out} holds something that is no encoder; it is left alone", "give another folder")
    if not overwrite:
        raise UserError(f"{out} exists already", "give another folder, or --overwrite")
    known = {DIGESTS, *listed}
    folders = {parent.as_posix() for name in listed for parent in Path(name).parents}
    others = sorted(
        name
        for path in out.rglob("*")
        if (name := path.relative_to(out).as_posix()) not in known | folders and not LITTER.fullmatch(path.name)
    )
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise UserError(
            f"{out} holds more than an encoder: {', '.join(others[:5])}{more}; it is left alone",
            "move these files away, or give another folder",
        )
