"""One shard: a USTAR tar of `<key>.ecg` and `<key>.json` members, the same bytes whenever and wherever it is written,
committed by rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.files import sync, temporary_path

BLOCK = tarfile.BLOCKSIZE
TAR_RECORD = tarfile.RECORDSIZE
MAX_KEY = 90  # a USTAR name field holds 100 bytes, suffix included


@dataclass(frozen=True)
class Member:
    """Where one record's payload and metadata lie in their shard: byte offsets of the contents themselves, sizes, crc32
    of the payload."""

    offset: int
    size: int
    crc32: int
    meta_offset: int
    meta_size: int


@dataclass(frozen=True)
class ShardInfo:
    """A committed shard: file name, records, bytes and sha256 of the file."""

    name: str
    records: int
    bytes: int
    sha256: str


def metadata_bytes(meta: dict[str, Any]) -> bytes:
    """A record's metadata as JSON with sorted keys, so that the same metadata is the same bytes.

    Raises RecordRejected("bad-metadata") for NaN, unknown types and text that UTF-8 cannot hold.
    """
    try:
        return json.dumps(meta, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, TypeError) as error:
        raise RecordRejected(
            "bad-metadata", f"record {meta.get('key')}: metadata that JSON cannot hold: {error}"
        ) from error


class ShardWriter:
    """Writes one shard under a temporary name; `commit()` makes it appear.

    Leaving the `with` block without a commit leaves nothing behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = temporary_path(path)
        self.bytes = 0
        self._records = 0
        self._sha256 = hashlib.sha256()
        self._file = self.temporary.open("wb", buffering=1 << 20)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def add(self, key: str, payload: bytes, meta: dict[str, Any]) -> Member:
        """Append one record.

        Raises RecordRejected("bad-metadata"), before anything is written, for a key too long for a tar member and as
        `metadata_bytes` does; OSError when the disk is full.
        """
        if len(key) > MAX_KEY:
            raise RecordRejected("bad-metadata", f"record key {key!r} is longer than {MAX_KEY} characters")
        described = metadata_bytes(meta)
        offset = self._member(f"{key}.ecg", payload)
        meta_offset = self._member(f"{key}.json", described)
        self._records += 1
        return Member(offset, len(payload), zlib.crc32(payload), meta_offset, len(described))

    def commit(self) -> ShardInfo:
        """End the tar, flush it to the disk and give it its name."""
        end = 2 * BLOCK
        self._write(b"\0" * (end + -(self.bytes + end) % TAR_RECORD))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.temporary, self.path)
        sync(self.path.parent)
        return ShardInfo(self.path.name, self._records, self.bytes, self._sha256.hexdigest())

    def abandon(self) -> None:
        """Drop what was not committed. Harmless after `commit()`."""
        with contextlib.suppress(OSError):  # a full disk refuses the last buffered bytes; they are dropped anyway
            self._file.close()
        self.temporary.unlink(missing_ok=True)

    def _member(self, name: str, content: bytes) -> int:
        self._write(_tar_header(name, len(content)))
        offset = self.bytes
        self._write(content)
        self._write(b"\0" * (-len(content) % BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.bytes += len(data)


def plain_tar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member: mode 0644, no owner, no time.

    `_tar_header` gives the same bytes an order of magnitude faster.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii")


_HEADER = bytearray(plain_tar_header("", 0))
_HEADER[148:156] = b" " * 8  # what the checksum itself counts as
_HEADER_SUM = sum(_HEADER) - sum(_HEADER[124:135])


def _tar_header(name: str, size: int) -> bytes:
    encoded, octal = name.encode("ascii"), b"%011o" % size
    if len(encoded) > 100 or len(octal) > 11:
        return plain_tar_header(name, size)
    header = _HEADER.copy()
    header[: len(encoded)] = encoded
    header[124:135] = octal
    header[148:155] = b"%06o\0" % (_HEADER_SUM + sum(encoded) + sum(octal))
    return bytes(header)
