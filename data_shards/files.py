"""Files that are whole or not there at all, and whether they still are what was written.

A file or folder is written under a temporary name beside its place, flushed to the disk, and renamed: the rename is the
commit. What is committed can be listed with sizes and sha256 (`facts_of`, `facts_below`) and compared with that list
later (`difference`, `differences`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import threading
import time
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

DEEPEST = 64
"""Lists and objects in one another that a JSON or YAML text may have."""
LARGEST_JSON = 1 << 28
"""Bytes of a JSON file that is read whole."""
LARGEST_TEXT = 1 << 24
"""Bytes of a text that is read whole: a recipe, a set of prompts, a key, a list."""

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


def usual_rights(path: Path) -> None:
    """Give a file the rights that any new file beside it has: some libraries write files for their owner alone, and
    others who share the folder could not read them."""
    probe = temporary_path(path)
    try:
        probe.touch(exist_ok=False)
        wanted = stat.S_IMODE(probe.stat().st_mode)
        if stat.S_IMODE(path.stat().st_mode) != wanted:
            path.chmod(wanted)
    except OSError:  # a file system without rights
        pass
    finally:
        probe.unlink(missing_ok=True)


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
        for file in list(temporary.rglob("*")):
            if file.is_file() and not file.is_symlink():
                usual_rights(file)
        if durable:
            sync_below(temporary)
        os.rename(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def parse_json(text: str | bytes, *, long_numbers: bool = False) -> Any:
    """The value in a JSON text that others may have written: the one parser of JSON.

    long_numbers: whole numbers may have up to 40 digits (tokenizers write 10^30 for "no limit"). Raises ValueError in
    words for whatever is no JSON, and beyond the limits: bytes that are no UTF-8, more than
    DEEPEST lists and objects in one another, a key that stands twice, a whole number of more than 64 bits, and one with
    a fraction or exponent that no float holds.
    """
    try:
        told = text if isinstance(text, str) else text.decode("utf-8")
        decoder = (_LENIENT if long_numbers else _CAREFUL) if _LONG_NUMBER.search(told) else _PLAIN
        value = decoder.decode(told)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if told.count("[") + told.count("{") > DEEPEST and not is_shallow(value):
        raise ValueError(_TOO_DEEP)
    return value


def parse_own_json(text: bytes) -> Any:
    """The value in a JSON text that this software wrote itself a moment ago and found again by its checksum, as it was:
    whole numbers of any length, and names of files that are no UTF-8, written with "surrogatepass"."""
    return json.loads(text.decode("utf-8", "surrogatepass"))


def is_shallow(value: Any, deepest: int = DEEPEST) -> bool:
    """Whether lists and mappings stand at most so deep in one another: deeper ones end the recursion of whoever walks
    through them."""
    layer = [value]
    for _ in range(deepest):
        layer = [each for each in layer if isinstance(each, dict | list)]
        layer = [each for one in layer for each in (one.values() if isinstance(one, dict) else one)]
        if not layer:
            return True
    return not any(isinstance(each, dict | list) for each in layer)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shortened(twice)} stands twice in one object")
    return found


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 64:
        raise ValueError(f"the number {digits[:24]}... has more than 64 bits")
    return int(digits)


def _long(digits: str) -> int:
    return int(digits) if len(digits) <= 40 else _whole(digits)


def _fraction(digits: str) -> float:
    found = float(digits)
    if math.isinf(found):
        raise ValueError(f"no float holds the number {digits[:24]}")
    return found


_PLAIN = json.JSONDecoder(object_pairs_hook=_object)
_CAREFUL = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_fraction)
_LENIENT = json.JSONDecoder(object_pairs_hook=_object, parse_int=_long, parse_float=_fraction)
_LONG_NUMBER = re.compile(r"[0-9]{19}|[eE][+]?[0-9]{3}")
_TOO_DEEP = f"it is nested too deeply, more than {DEEPEST} lists and objects in one another"


def read_json_object(path: Path, most: int = LARGEST_JSON) -> dict[str, Any]:
    """The object in a JSON file. Raises OSError, also for what is no regular file or has more than `most` bytes;
    ValueError in words for anything but a JSON object within the limits of `parse_json`."""
    values = parse_json(read_bytes(path, most))
    if not isinstance(values, dict):
        raise ValueError(f"it holds {shortened(values)}, not a JSON object")
    return values


def json_lines(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The objects among lines of a file that others may write to while it is read; what is none is passed over."""
    for raw in lines:
        try:
            values = parse_json(raw)
        except ValueError:
            continue
        if isinstance(values, dict):
            yield values


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`, None when the file is absent or not (yet) a JSON object."""
    try:
        return read_json_object(path)
    except (OSError, ValueError):
        return None


def write_json(path: Path, values: Any, **style: Any) -> None:
    """Commit `values` as a JSON file in UTF-8. style: as `json.dumps` takes it, for example `indent=1,
    sort_keys=True`."""
    text = json.dumps(values, **style)
    commit_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def open_regular(path: Path) -> int:
    """A descriptor for reading a plain file, or a link to one. Raises OSError, at once, for a pipe, a socket, a device
    or a folder: what a name from a list leads to must not hold up its reader."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def _opened(path: Path) -> BufferedReader:
    return os.fdopen(open_regular(path), "rb")


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """The content of a regular file. Raises OSError, see `open_regular`, also for more than `most` bytes."""
    with _opened(path) as file:
        content = file.read() if most is None else file.read(most + 1)
    if most is not None and len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes, which are too many", str(path))
    return content


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """The UTF-8 text of a regular file, with or without a byte order mark. Raises OSError, see `open_regular`, also for
    more than `most` bytes, and UnicodeDecodeError."""
    return read_bytes(path, most).decode("utf-8-sig")


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content, read a piece at a time. Raises OSError; see `open_regular`."""
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_DIGESTS: dict[tuple[int, ...], str] = {}
_SETTLED_NS = 200_000_000
"""A file that was written this lately may change again without a later time stamp: its digest is not kept."""


def sha256_once(path: Path) -> str:
    """`sha256_of`, computed once per process for as long as the file's device, inode, size and times stay.

    For files that are opened several times in a process. Nothing is kept on disk: a process never believes another.
    """
    found = path.stat()
    facts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    digest = _DIGESTS.get(facts)
    if digest is None:
        digest = sha256_of(path)
        if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED_NS:
            _DIGESTS[facts] = digest
    return digest


def is_sha256(value: object) -> bool:
    """True for a digest as a list may hold it: 64 small hexadecimal digits. Anything else is not to be used."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def is_plain_name(value: object) -> bool:
    """True for the name of a file in a folder: it leads nowhere else, is not hidden and has no control characters."""
    return (
        isinstance(value, str)
        and 0 < len(value.encode("utf-8", "replace")) <= 255
        and not value.startswith(".")
        and not any(each in "/\\" or not each.isprintable() for each in value)
    )


def shortened(value: object) -> str:
    """A value out of a file, as a sentence can quote it: not long, and without control characters."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_count(value: object, most: int = 1 << 40) -> bool:
    """True for a whole number from 0 to `most`, as JSON gives it; True and 3.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


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


def difference(
    path: Path, listed: FileFacts, *, quick: bool = False, digest: Callable[[Path], str] = sha256_of
) -> Difference | None:
    """How a file differs from what was listed; None when it does not. quick: by its size alone.

    digest: `sha256_once` where it is enough to read the content once per process. Raises OSError when it cannot be
    read.
    """
    expected = listed.bytes or 0
    if not path.is_file():
        return Difference(path.name, "missing", 0, expected)
    size = path.stat().st_size
    if listed.bytes is not None and size != listed.bytes:
        return Difference(path.name, "size", size, expected)
    if not quick and digest(path) != listed.sha256:
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
