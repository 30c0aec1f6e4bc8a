"""Files that are whole or not there at all, and whether they still are what was written.

A file or folder is written under a temporary name beside its place, flushed to the disk, and renamed: the rename is the
commit. What is committed can be listed with sizes and sha256 (`facts_of`, `facts_below`) and compared with that list
later (`difference`, `differences`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

UNREADABLE_ARRAY = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    SyntaxError,
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What `numpy.load` raises for a .npy or .npz with changed bytes: its header is parsed as Python."""


def temporary_path(path: Path) -> Path:
    """Where this thread writes `path` before it is committed: `.<name>.<node>.<pid>.<thread>.tmp` beside it.

    Nodes may share the folder, and threads of one process may make the same file, so each has a name of its own.
    """
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.{threading.get_native_id()}.tmp")


def sync(path: Path) -> None:
    """Flush a file to the disk; of a folder its names, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_below(folder: Path) -> None:
    """Flush a folder, and all files and folders below it, to the disk."""
    for path in folder.rglob("*"):
        if path.is_file() or path.is_dir():  # a pipe would hold up whoever opens it
            sync(path)
    sync(folder)


def commit_file(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let `write` fill a temporary file, flush it to the disk, give it the name `path`.

    Nothing is left behind when it fails.

    durable False: not flushed, for what can be made or fetched again.
    """
    temporary = temporary_path(path)
    try:
        write(temporary)
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


@contextmanager
def commit_folder(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary folder beside `path` to be filled in the `with` block; at its end it becomes `path`.

    Nothing is left behind when that fails.

    The folders above are made. Raises OSError when `path` is a folder with something in it by then: another process may
    have been faster. durable False: not flushed to the disk, for what can be made or fetched again.
    """
    temporary = temporary_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if durable:
            sync_below(temporary)
        os.rename(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`, None when the file is absent or not (yet) a JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def write_json(path: Path, values: Any, **style: Any) -> None:
    """Commit `values` as a JSON file in UTF-8. style: as `json.dumps` takes it, for example `indent=1,
    sort_keys=True`."""
    text = json.dumps(values, **style)
    commit_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content, read a piece at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class FileFacts:
    """What a list says about a file: sha256 of its content, and its size where the list has sizes."""

    sha256: str
    bytes: int | None = None


def facts_of(path: Path) -> FileFacts:
    """The facts about a file as it is now."""
    return FileFacts(sha256_of(path), path.stat().st_size)


def names_below(folder: Path, but: Container[str] = ()) -> list[str]:
    """Names, relative to `folder`, of all files below it, sorted; those in `but` are left out."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in but)


def facts_below(folder: Path, but: Container[str] = ()) -> dict[str, FileFacts]:
    """Name -> facts of all files below `folder`, for a list that is kept in one of the files in `but`."""
    return {name: facts_of(folder / name) for name in names_below(folder, but)}


@dataclass(frozen=True)
class Difference:
    """A file that is not as it was listed.

    kind: it is "missing", has another "size", other "content", or is "unlisted". bytes: its size now; listed: its size
    in the list; 0 where there is none.
    """

    name: str
    kind: Literal["missing", "size", "content", "unlisted"]
    bytes: int = 0
    listed: int = 0


def difference(path: Path, listed: FileFacts, *, quick: bool = False) -> Difference | None:
    """How a file differs from what was listed; None when it does not. quick: by its size alone."""
    expected = listed.bytes or 0
    if not path.is_file():
        return Difference(path.name, "missing", 0, expected)
    size = path.stat().st_size
    if listed.bytes is not None and size != listed.bytes:
        return Difference(path.name, "size", size, expected)
    if not quick and sha256_of(path) != listed.sha256:
        return Difference(path.name, "content", size, expected)
    return None


def differences(folder: Path, listed: Mapping[str, FileFacts], but: Container[str] = ()) -> list[Difference]:
    """What differs from a list of all files below `folder` (names as in `names_below`): first what is listed, then what
    is not.

    The files in `but`, such as the one that holds the list, are not looked at.
    """
    found: list[Difference] = []
    for name, facts in listed.items():
        differing = difference(folder / name, facts)
        if differing is not None:
            found.append(replace(differing, name=name))
    unlisted = (name for name in names_below(folder, but) if name not in listed)
    return found + [Difference(name, "unlisted", (folder / name).stat().st_size) for name in unlisted]
