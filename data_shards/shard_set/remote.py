"""Shard sets behind a URL: whatever fsspec reaches (s3, gs, http, ...), read through a bounded cache that the processes
of a node share.

<cache>/<digest>/ holds one version of one set: `manifest.json`, the tables and text banks as they are, and those shards
that were read lately. The digest follows from the URL and the manifest, so a set that is built anew under the same URL
never mixes with its past. Shards are fetched when they are first read, checked against the manifest's sha256, and
appear by rename; the least recently read ones go when the cache is full.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import logging
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import DataError, StorageError
from cardialign.data_shards.files import commit_file, commit_folder, is_plain_name, sha256_of, sha256_once
from cardialign.data_shards.locations import url_of
from cardialign.data_shards.shard_set.bank_description import OtherBankVersionError, judge_bank, listed_files
from cardialign.data_shards.shard_set.cache import ShardCache, locked
from cardialign.data_shards.shard_set.layout import BANK_FILE, BANKS, INDEX, MANIFEST, REPORTS, judge_manifest
from cardialign.data_shards.shard_set.storage import patiently
from cardialign.data_shards.shard_set.transfers import RemoteFiles
from cardialign.data_shards.shown import without_secrets

log = logging.getLogger(__name__)
GIVEN_UP_SECONDS = 60.0
CACHE_REMEDY = "free space there, or set CARDIALIGN_CACHE to a folder that may be written to; then run again"


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
    text = patiently(lambda: files.read(MANIFEST), f"{files.url}/{MANIFEST}")
    manifest = judge_manifest(text, f"{files.url}/{MANIFEST}")
    shards = {shard["name"]: (shard["bytes"], shard["sha256"]) for shard in manifest["shards"]}
    folder = cache.folder / hashlib.sha256(url.encode() + b"\n" + text).hexdigest()[:24]
    try:
        patiently(lambda: _fetch_tables(files, folder, text, manifest["tables"]), f"cache {folder}", CACHE_REMEDY)
    except OSError as error:
        raise StorageError(f"cache {folder} cannot be used: {error}", CACHE_REMEDY) from error
    return RemoteShards(url, folder, cache, shards)


def _fetch_tables(files: RemoteFiles, folder: Path, text: bytes, tables: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".tables.lock"):
        for name in (INDEX, REPORTS):
            path = folder / name
            if not path.is_file() or sha256_once(path) != tables[name]:  # or damaged since it was fetched
                files.download(name, path, tables[name])
        _fetch_banks(files, folder)
        commit_file(folder / MANIFEST, lambda temporary: temporary.write_bytes(text), durable=False)


def _fetch_banks(files: RemoteFiles, folder: Path) -> None:
    """Text banks beside the shards, each as one step, so that a half fetched bank is never opened."""
    for name in files.list(BANKS):
        if not is_plain_name(name) or (folder / BANKS / name).exists():
            continue
        if BANK_FILE not in files.list(f"{BANKS}/{name}"):
            continue
        where = f"{files.url}/{BANKS}/{name}/{BANK_FILE}"
        text = files.read(f"{BANKS}/{name}/{BANK_FILE}")
        try:
            listed = listed_files(judge_bank(text, where))  # by this list, never by what a server shows
        except OtherBankVersionError as error:
            log.info("skipped text_bank=%s reason=%s", name, error.problem)
            continue
        for leftover in (folder / BANKS).glob(
            f".{glob.escape(name)}.*.tmp"
        ):  # of a process that was killed: the caller holds the lock
            shutil.rmtree(leftover, ignore_errors=True)
        with commit_folder(folder / BANKS / name, durable=False) as temporary:
            for member, facts in listed.items():
                files.download(f"{BANKS}/{name}/{member}", temporary / member, facts.sha256)
            (temporary / BANK_FILE).write_bytes(text)
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
    _given_up: dict[str, tuple[float, StorageError]] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.folder, self.cache, self.shards)

    def open(self, name: str) -> int:
        """A descriptor of one shard, fetched first when the cache lacks it; the processes and threads of a node fetch a
        shard once.

        The descriptor stays readable when the cache drops the file. Raises StorageError naming the shard and the URL,
        and OSError where the cache is the trouble.
        """
        path = self.folder / name
        size, digest = self.shards[name]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # somebody may have emptied the cache meanwhile
            fetched = False
            with self.cache.fetching(path):
                while True:
                    with contextlib.suppress(FileNotFoundError):  # or dropped by another process a moment ago
                        descriptor = self.cache.open(path)
                        if fetched or os.fstat(descriptor).st_size == size:
                            return descriptor
                        os.close(descriptor)
                        self._drop(path, "its size")
                    self._raise_again(name)
                    self.cache.make_room(size)
                    started = time.monotonic()
                    try:
                        RemoteFiles(self.url).download(name, path, digest)
                    except DataError as error:
                        given_up = StorageError(error.problem, error.remedy)
                        self._given_up[name] = time.monotonic(), given_up
                        raise given_up from error
                    fetched = True
                    log.info(
                        "fetched shard=%s bytes=%d seconds=%.2f url=%s",
                        name,
                        size,
                        time.monotonic() - started,
                        without_secrets(self.url),
                    )
        except FileNotFoundError as error:  # the folder went again; another try makes it
            raise OSError(errno.ESTALE, "the folder of the cache went away", str(self.folder)) from error

    def drop_damaged(self, name: str) -> bool:
        """Drop a shard from the cache when its content is not what the manifest says: it is fetched again when it is
        next read. Returns whether it was dropped."""
        path = self.folder / name
        with self.cache.fetching(path):
            if path.is_file() and sha256_of(path) == self.shards[name][1]:
                return False
            self._drop(path, "its sha256")
            return True

    def _drop(self, path: Path, what: str) -> None:
        log.warning("action=fetch-again shard=%s cache=%s reason=%s differs", path.name, self.folder, what)
        path.unlink(missing_ok=True)

    def _raise_again(self, name: str) -> None:
        at, error = self._given_up.get(name, (0.0, None))
        if error is not None and time.monotonic() - at < GIVEN_UP_SECONDS:
            raise StorageError(error.problem, error.remedy)
