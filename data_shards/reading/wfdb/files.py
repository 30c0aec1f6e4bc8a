"""The files of a record: which ones a header may name, and their bytes."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.reading.plain_files import check_held, plain_bytes

LARGEST_HEADER = 1 << 24
LARGEST_FILE = 1 << 32
"""Bytes: two days of twelve leads at 500 Hz."""
_LEAST_REST = 1 << 26


def header_bytes(path: Path) -> bytes:
    """Raises OSError, also for what is no plain file or far too long for a header."""
    data, size = plain_bytes(os.fspath(path), LARGEST_HEADER)
    if size > LARGEST_HEADER:
        raise OSError(f"{size} bytes are too many for a header")
    return data


def signal_bytes(file: str, needed: int | None) -> tuple[bytes, int]:
    """What a signal file holds, and its size: the bytes end somewhat behind the `needed` when it holds much more than
    these; needed None: all of them.

    Raises RecordRejected: missing-file, bad-format.
    """
    try:
        data, size = plain_bytes(file, LARGEST_FILE if needed is None else needed + _LEAST_REST)
    except (FileNotFoundError, NotADirectoryError):
        raise RecordRejected("missing-file", f"{file}: no such signal file") from None
    except OSError as error:
        raise RecordRejected("bad-format", f"{file}: {error.strerror or error}") from None
    if len(data) > LARGEST_FILE or (needed is None and size > LARGEST_FILE):
        raise RecordRejected("bad-format", f"{file}: {size} bytes are more than a recording takes: cut it into parts")
    return data, size


def beside(folder: Path, name: str, suffix: str = "") -> str:
    """Path of a file that a header names: it lies in the header's folder or below, for a header is no reason to read
    any other file. A folder in the name is left out when the file lies beside the header (data sets are moved).

    Raises RecordRejected: unreadable-header, missing-file, which names the folder, and outside-root, for a link.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts if "\\" in name or "/" in name else (name,)
    if not name.strip(".") or "\0" in name or any(part in ("/", "..") or part.endswith(":") for part in parts):
        raise RecordRejected("unreadable-header", f"{folder}: {name[:200]!r} is not a file name in the header's folder")
    if len(parts) == 1:
        place = os.path.join(folder, name + suffix)
        check_held(folder, place)
        return place
    places = [os.path.join(folder, *parts) + suffix, os.path.join(folder, parts[-1]) + suffix]
    for place in places:
        if os.path.lexists(place):
            check_held(folder, place)
            return place
    raise RecordRejected(
        "missing-file",
        f"{places[0]}: no such file; the header names the folder {'/'.join(parts[:-1])!r}, and "
        f"{parts[-1] + suffix!r} lies neither there nor beside the header",
    )
