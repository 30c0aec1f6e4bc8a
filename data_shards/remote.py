"""Shard sets behind a URL: whatever fsspec reaches (s3, gs, http, ...), read through a bounded cache that the processes of a node share.

<cache>/<digest>/ holds one version of one set: `manifest.json`, the tables and text banks as they are, and those shards that were read lately. The
digest follows from the URL and the manifest, so a set that is built anew under the same URL never mixes with its past. Shards are fetched when
they are first read, checked against the manifest's sha256, and appear by rename; the least recently read ones go when the cache is full.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.commit_set import INDEX, MANIFEST, REPORTS
from data_shards.errors import DataError, UserError, disk_error
from data_shards.shard_cache import ShardCache, locked
from data_shards.shard_writer import file_sha256

log = logging.getLogger(__name__)
ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.5
BANKS = "text_bank"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/{1,3})(.*)", re.DOTALL)


def url_of(location: Path | str) -> str | None:
    """The URL that `location` is, None for a folder. A URL that went through `Path` (which folds "//") is restored.

    Raises DataError for `pipe:`, which would run a shell command.
    """
    text = str(location)
    if text.startswith("pipe:"):
        raise DataError(f"{text!r} runs a shell command instead of naming a place", "give a folder or a URL such as s3://bucket/set")
    match = _URL.fullmatch(text)
    if match is None or ("://" not in text and Path(text).exists()):
        return None
    protocol, _, rest = match.groups()
    return f"{protocol}://{'/' if protocol in ('file', 'local') else ''}{rest.lstrip('/')}".rstrip("/")


def local_folder(location: Path | str) -> Path:
    """Where the manifest, the tables and the text banks of a shard set lie on this machine: a folder itself, or the cache of a URL."""
    remote = open_remote(location)
    return Path(location) if remote is None else remote.folder


def open_remote(location: Path | str, cache: ShardCache | None = None) -> RemoteShards | None:
    """None for a folder. For a URL: fetches manifest, tables and text banks into the cache and returns what fetches the shards.

    cache: default `ShardCache.from_environment()`. Raises DataError when nothing whole is there or it cannot be reached, UserError when the package
    for the protocol is missing.
    """
    url = url_of(location)
    if url is None:
        return None
    cache = cache or ShardCache.from_environment()
    files = _Remote(url)
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
            temporary = folder / f".{MANIFEST}.tmp"
            temporary.write_bytes(text)
            os.replace(temporary, folder / MANIFEST)
    except OSError as error:
        raise disk_error(error, folder) from error
    return remote


def _fetch_banks(files: _Remote, folder: Path) -> None:
    """Text banks beside the shards, each as one step, so that a half fetched bank is never opened."""
    for name in files.list(BANKS):
        if name.startswith(".") or (folder / BANKS / name).exists():
            continue
        members = files.list(f"{BANKS}/{name}")
        if "bank.json" not in members:
            continue
        temporary = folder / BANKS / f".{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for member in members:
            files.download(f"{BANKS}/{name}/{member}", temporary / member, None)
        os.replace(temporary, folder / BANKS / name)
        log.info("fetched text_bank=%s url=%s", name, files.url)


@dataclass(frozen=True)
class RemoteShards:
    """The shards of one set behind `url`, cached in `folder`. `shards`: name -> (bytes, sha256), from the manifest. Picklable."""

    url: str
    folder: Path
    cache: ShardCache
    shards: dict[str, tuple[int, str]]

    def open(self, name: str) -> int:
        """A descriptor of one shard, fetched first when the cache lacks it; the processes and threads of a node fetch a shard once.

        The descriptor stays readable when the cache drops the file. Raises DataError naming the shard and the URL.
        """
        path = self.folder / name
        size, digest = self.shards[name]
        try:
            with self.cache.fetching(path):
                while True:
                    with contextlib.suppress(FileNotFoundError):  # or dropped by another process a moment ago
                        return self.cache.open(path)
                    self.cache.make_room(size)
                    started = time.monotonic()
                    _Remote(self.url).download(name, path, digest)
                    log.info("fetched shard=%s bytes=%d seconds=%.2f url=%s", name, size, time.monotonic() - started, self.url)
        except OSError as error:
            raise disk_error(error, path) from error


class _Remote:
    """The files below one URL. Every failure of the network is a DataError with the URL and, for passing ones, after some attempts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.system, self.root = _file_system(url)

    def read(self, name: str) -> bytes:
        return self._attempt(name, lambda: self.system.cat_file(self._path(name)))

    def list(self, name: str) -> list[str]:
        """Names below a folder; empty when it does not exist or the server does not list folders."""
        try:
            self.system.invalidate_cache()
            found = self.system.ls(self._path(name), detail=False)
        except (FileNotFoundError, NotADirectoryError, NotImplementedError):
            return []
        except Exception as error:  # every protocol has a family of its own
            log.warning("cannot list url=%s/%s error=%s", self.url, name, _short(error))
            return []
        inside = self._path(name).rstrip("/").rsplit("/", 1)[-1]
        names = dict.fromkeys(str(path).rstrip("/").rsplit("/", 1)[-1] for path in found)
        return [each for each in names if each and each != inside and not each.startswith(("?", "#"))]

    def download(self, name: str, path: Path, sha256: str | None) -> None:
        """The file as `path`, in one step; checked when `sha256` is given (a damaged transfer is tried again)."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed: the caller holds the lock
            leftover.unlink(missing_ok=True)

        def fetch() -> None:
            self.system.get_file(self._path(name), str(temporary))
            if sha256 is not None and (found := file_sha256(temporary)) != sha256:
                raise _DamagedError(f"its sha256 is {found[:12]}..., the manifest says {sha256[:12]}...")

        try:
            self._attempt(name, fetch)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def _attempt(self, name: str, act: Any) -> Any:
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return act()
            except FileNotFoundError as error:
                if name == MANIFEST:
                    raise DataError(
                        f"{self.url} holds no finished shard set (no {MANIFEST})", "check the URL, or copy the set again"
                    ) from error
                raise DataError(f"{self.url}/{name} is missing, though the manifest lists it", "copy the shard set there again") from error
            except PermissionError as error:
                raise DataError(f"{self.url}/{name} may not be read: {error}", "check the credentials of this protocol") from error
            except Exception as error:  # every protocol has a family of its own
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if attempt == ATTEMPTS:
                    remedy = (
                        "copy the shard set there again"
                        if isinstance(error, _DamagedError)
                        else "check the network and the URL, then run again"
                    )
                    raise DataError(f"{self.url}/{name} cannot be fetched ({attempt} attempts): {_short(error)}", remedy) from error
                log.warning("retry url=%s/%s attempt=%d error=%s", self.url, name, attempt, _short(error))
                time.sleep(pause)
                pause *= 2


class _DamagedError(OSError):
    """What arrived is not what the manifest promises."""


def _short(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _file_system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    protocol = url.partition("://")[0]
    try:
        return url_to_fs(url)
    except ImportError as error:
        package = known_implementations.get(protocol, {}).get("class", protocol).partition(".")[0]
        wanted = "aiohttp and requests" if package == "fsspec" and protocol in ("http", "https") else package
        raise UserError(
            f"{url}: reading {protocol}:// needs the package {wanted}: {_short(error)}", f"install it: pip install {wanted}"
        ) from error
    except ValueError as error:
        raise UserError(f"{url}: {_short(error)}", "use a protocol that fsspec knows, such as s3, gs, abfs, http or file") from error
