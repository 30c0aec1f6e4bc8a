"""Shard sets behind a URL: whatever fsspec reaches (s3, gs, http, ...), read through a bounded cache that the processes
of a node share.

<cache>/<digest>/ holds one version of one set: `manifest.json`, the tables and text banks as they are, and those shards
that were read lately. The digest follows from the URL and the manifest, so a set that is built anew under the same URL
never mixes with its past. Shards are fetched when they are first read, checked against the manifest's sha256, and
appear by rename; the least recently read ones go when the cache is full.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import DataError, disk_error
from cardialign.data_shards.files import commit_file, commit_folder
from cardialign.data_shards.locations import url_of
from cardialign.data_shards.shard_set.cache import ShardCache, locked
from cardialign.data_shards.shard_set.layout import BANK_FILE, BANKS, INDEX, MANIFEST, REPORTS
from cardialign.data_shards.shard_set.transfers import RemoteFiles

log = logging.getLogger(__name__)
GIVEN_UP_SECONDS = 60.0


def local_folder(location: Path | str) -> Path:
    """Where the manifest, the tables and the text banks of a shard set lie on this machine: a folder itself, or the
    cache of a URL."""
    remote = open_remote(location)
    return Path(location) if remote is None else remote.folder


def open_remote(location: Path | str, cache: ShardCache | None = None) -> RemoteShards | None:
    """None for a folder.

    For a URL: fetches manifest, tables and text banks into the cache and returns what fetches the shards.

    cache: default `ShardCache.from_environment()`. Raises DataError when nothing whole is there or it cannot be
    reached, UserError when the package for the protocol is missing.
    """
    url = url_of(location)
    if url is None:
        return None
    cache = cache or ShardCache.from_environment()
    files = RemoteFiles(url)
    text = files.read(MANIFEST)
    try:
        manifest: dict[str, Any] = json.loads(text)
        shards = {shard["name"]: (int(shard["bytes"]), str(shard["sha256"])) for shard in manifest["shards"]}
        tables: dict[str, str] = manifest["tables"]
        for name in [*shards, *tables]:
            if Path(name).name != name:
                raise ValueError(f"file name {name!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{url}/{MANIFEST} is damaged: {error}", "build the shard set again") from error
    folder = cache.folder / hashlib.sha256(url.encode() + b"\n" + text).hexdigest()[:24]
    remote = RemoteShards(url, folder, cache, shards)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".tables.lock"):
            if not (folder / MANIFEST).exists():
                for name in (INDEX, REPORTS):
                    files.download(name, folder / name, tables.get(name))
            if not (folder / MANIFEST).exists() or not (folder / BANKS).is_dir():
                _fetch_banks(files, folder)
            commit_file(folder / MANIFEST, lambda temporary: temporary.write_bytes(text), durable=False)
    except OSError as error:
        raise disk_error(error, folder) from error
    return remote


def _fetch_banks(files: RemoteFiles, folder: Path) -> None:
    """Text banks beside the shards, each as one step, so that a half fetched bank is never opened."""
    for name in files.list(BANKS):
        if name.startswith(".") or (folder / BANKS / name).exists():
            continue
        members = files.list(f"{BANKS}/{name}")
        if BANK_FILE not in members:
            continue
        for leftover in (folder / BANKS).glob(
            f".{name}.*.tmp"
        ):  # of a process that was killed: the caller holds the lock
            shutil.rmtree(leftover, ignore_errors=True)
        with commit_folder(folder / BANKS / name, durable=False) as temporary:
            for member in members:
                files.download(f"{BANKS}/{name}/{member}", temporary / member, None)
        log.info("fetched text_bank=%s url=%s", name, files.url)


@dataclass(frozen=True)
class RemoteShards:
    """The shards of one set behind `url`, cached in `folder`.

    `shards`: name -> (bytes, sha256), from the manifest. Picklable.

    A shard that could not be fetched is not asked for again for GIVEN_UP_SECONDS: each of its thousands of records
    would begin the attempts anew.
    """

    url: str
    folder: Path
    cache: ShardCache
    shards: dict[str, tuple[int, str]]
    _given_up: dict[str, tuple[float, DataError]] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.folder, self.cache, self.shards)

    def open(self, name: str) -> int:
        """A descriptor of one shard, fetched first when the cache lacks it; the processes and threads of a node fetch a
        shard once.

        The descriptor stays readable when the cache drops the file. Raises DataError naming the shard and the URL.
        """
        path = self.folder / name
        size, digest = self.shards[name]
        try:
            with self.cache.fetching(path):
                while True:
                    with contextlib.suppress(FileNotFoundError):  # or dropped by another process a moment ago
                        return self.cache.open(path)
                    self._raise_again(name)
                    self.cache.make_room(size)
                    started = time.monotonic()
                    try:
                        RemoteFiles(self.url).download(name, path, digest)
                    except DataError as error:
                        self._given_up[name] = time.monotonic(), error
                        raise
                    log.info(
                        "fetched shard=%s bytes=%d seconds=%.2f url=%s",
                        name,
                        size,
                        time.monotonic() - started,
                        self.url,
                    )
        except OSError as error:
            raise disk_error(error, path) from error

    def _raise_again(self, name: str) -> None:
        at, error = self._given_up.get(name, (0.0, None))
        if error is not None and time.monotonic() - at < GIVEN_UP_SECONDS:
            raise DataError(error.problem, error.remedy)
