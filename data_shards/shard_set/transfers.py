"""The files below one URL, by whatever protocol fsspec reaches: fetched whole, tried again when a failure may pass,
every other failure in words."""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import DataError, StorageError, UserError
from cardialign.data_shards.files import commit_file, sha256_of
from cardialign.data_shards.shard_set.layout import MANIFEST
from cardialign.data_shards.shard_set.redirects import guarded_client
from cardialign.data_shards.shown import without_secrets

log = logging.getLogger(__name__)
ATTEMPTS = 4
_OF_THIS_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS)
"""Not the network's fault: the caller knows what can be done."""
FIRST_PAUSE_SECONDS = 0.5
SLOW_FETCH_SECONDS = 60.0  # a shard has hundreds of megabytes
_S3 = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, of somebody who may read it (a public bucket: "
    "FSSPEC_S3_ANON=true); "
    "for a store other than Amazon's also AWS_ENDPOINT_URL"
)
_GS = (
    "set GOOGLE_APPLICATION_CREDENTIALS to a key file of somebody who may read it, or run `gcloud auth "
    "application-default login` "
    "(a public bucket: FSSPEC_GS_TOKEN=anon)"
)
_WEB = ("http", "https")
_RIGHTS = {"s3": _S3, "s3a": _S3, "gs": _GS, "gcs": _GS}


class RemoteFiles:
    """The files below one URL.

    Every failure of the network is a DataError with the URL and, for passing ones, after some attempts.
    """

    def __init__(self, url: str) -> None:
        self.url = without_secrets(url)  # for messages only
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
        # of a process that was killed: the caller holds the lock
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)

        def fetch(temporary: Path) -> None:
            self.system.get_file(self._path(name), str(temporary))
            if sha256 is not None and (found := sha256_of(temporary)) != sha256:
                raise _DamagedError(f"its sha256 is {found[:12]}..., the manifest says {sha256[:12]}...")

        commit_file(path, lambda temporary: self._attempt(name, lambda: fetch(temporary)), durable=False)

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _reported_while_slow(self, name: str) -> Iterator[None]:
        def report() -> None:
            log.warning("action=slow-fetch url=%s/%s seconds=%.0f state=waiting", self.url, name, SLOW_FETCH_SECONDS)

        timer = threading.Timer(SLOW_FETCH_SECONDS, report)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _attempt(self, name: str, act: Any) -> Any:
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._reported_while_slow(name):
                    return act()
            except UserError:  # ours already
                raise
            except FileNotFoundError as error:
                if name == MANIFEST:
                    raise DataError(
                        f"{self.url} holds no finished shard set (no {MANIFEST})",
                        "check the URL, or copy the set again",
                    ) from error
                raise DataError(
                    f"{self.url}/{name} is missing, though the manifest lists it", "copy the shard set there again"
                ) from error
            except PermissionError as error:
                raise DataError(f"{self.url}/{name} may not be read: {_short(error)}", _rights(self.url)) from error
            except Exception as error:  # every protocol has a family of its own
                if _lacks_credentials(error):
                    raise DataError(f"{self.url}/{name} may not be read: {_short(error)}", _rights(self.url)) from error
                if (
                    type(error) is ValueError
                ):  # an address that is none (a subclass may be half an answer): waiting does not make it one
                    raise DataError(
                        f"{self.url}/{name} cannot be fetched: {_short(error)}", "check the URL and the endpoint"
                    ) from error
                if isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE:
                    raise
                if attempt == ATTEMPTS:
                    remedy = (
                        "copy the shard set there again"
                        if isinstance(error, _DamagedError)
                        else "check the network and the URL, then run again"
                    )
                    raise DataError(
                        f"{self.url}/{name} cannot be fetched ({attempt} attempts): {_short(error)}", remedy
                    ) from error
                log.warning("retry url=%s/%s attempt=%d error=%s", self.url, name, attempt, _short(error))
                time.sleep(pause)
                pause *= 2


class _DamagedError(OSError):
    """What arrived is not what the manifest promises."""


def _lacks_credentials(error: BaseException) -> bool:
    """True for the many exceptions of the cloud packages that mean it: botocore's NoCredentialsError, google.auth's
    DefaultCredentialsError, ..."""
    names = [kind.__name__ for kind in type(error).__mro__] + [type(error.__cause__).__name__]
    return any("Credential" in name or name in ("TokenRetrievalError", "UnauthorizedSSOTokenError") for name in names)


def _rights(url: str) -> str:
    return _RIGHTS.get(url.partition("://")[0], "check the credentials of this protocol")


def _short(error: BaseException) -> str:
    return without_secrets(next(iter(str(error).splitlines()), "")) or type(error).__name__


def _file_system(url: str) -> tuple[Any, str]:
    from fsspec.registry import get_filesystem_class, known_implementations

    protocol, shown = url.partition("://")[0], without_secrets(url)
    try:
        # not by `url_to_fs`, which would follow a chain of places
        kind = get_filesystem_class(protocol)
        words = kind._get_kwargs_from_urls(url) | ({"get_client": guarded_client} if protocol in _WEB else {})
        return kind(**words), kind._strip_protocol(url)
    except ImportError as error:
        package = known_implementations.get(protocol, {}).get("class", protocol).partition(".")[0]
        own = {"http": "aiohttp and requests", "https": "aiohttp and requests", "ssh": "paramiko", "sftp": "paramiko"}
        wanted = own.get(protocol, package)  # fsspec has these classes itself, and lacks what they stand on
        raise UserError(
            f"{shown}: reading {protocol}:// needs the package {wanted}: {_short(error)}",
            f"install it: pip install {wanted}",
        ) from error
    except ValueError as error:
        raise UserError(
            f"{shown}: {_short(error)}", "use a protocol that fsspec knows, such as s3, gs, abfs, http or file"
        ) from error
    except Exception as error:  # some ask their server as soon as they are made; every one has a family of its own
        if _lacks_credentials(error):
            raise DataError(f"{shown} may not be read: {_short(error)}", _rights(url)) from error
        raise StorageError(f"{shown} cannot be reached: {_short(error)}", "check the network and the URL") from error
