"""Where a shard set lies: a folder of this machine, or a URL that fsspec reaches. The one judge of what is given."""

from __future__ import annotations

import re
from pathlib import Path

from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.shown import has_secret, without_secrets

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/{1,3})(.*)", re.DOTALL)
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[:/]")
_IPV6_HOST = re.compile(r"//?\[[0-9A-Fa-f:.%]*\]")
INDIRECT = frozenset(
    ("asynclocal", "asyncwrapper", "blockcache", "cached", "dask", "data", "dir", "filecache",
     "generic", "jlab", "jupyter", "libarchive", "pyscript", "reference", "simplecache", "tar", "zip")
)  # fmt: skip
"""Protocols of fsspec that name no place of their own: they run a command, hold the content in the name, or look into
another file. A set behind one would be read from somewhere that its user never named."""


def url_of(location: Path | str) -> str | None:
    """The URL that `location` is, None for a folder. A URL that went through `Path` (which folds "//") is restored.

    Raises DataError for what names no place: `pipe:`, which would run a shell command, protocols that look into other
    files, and chains of several; UserError for a protocol that fsspec does not know; UsageError for an address with a
    password or a signature in it: a recipe, a run directory and the tracking store keep addresses.
    """
    text, shown = str(location), without_secrets(str(location))
    if re.match(r"\s*pipe:", text, re.IGNORECASE):
        raise DataError(f"{shown!r} runs a shell command instead of naming a place", _REMEDY)
    if "::" in _IPV6_HOST.sub("//host", text, count=1) and _PROTOCOL.match(text) and not Path(text).exists():
        raise DataError(f"{shown!r} chains several places instead of naming one", _REMEDY)
    match = _URL.fullmatch(text)
    if match is None or ("://" not in text and Path(text).exists()):
        return None
    protocol, _, rest = match.groups()
    protocol = protocol.lower()
    if has_secret(f"{protocol}://{rest}"):  # as it was before `Path` folded it
        raise UsageError(f"{shown!r} holds a password or a signature, which {_SEEN}", _IN_ENVIRONMENT)
    if protocol in INDIRECT:
        raise DataError(f"{shown!r} is no place of its own: {protocol}:// looks into something else", _REMEDY)
    if protocol not in _protocols():
        raise UserError(
            f"{shown}: protocol {protocol}:// is not known",
            "use one that fsspec knows, such as s3, gs, abfs, http or file",
        )
    return f"{protocol}://{'/' if protocol in ('file', 'local') else ''}{rest.lstrip('/')}".rstrip("/")


_REMEDY = "give a folder or a URL such as s3://bucket/set"
_SEEN = "a recipe, a run directory and a list of processes would keep and show"
_IN_ENVIRONMENT = (
    "give the address alone, and the rest in the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3), "
    'FSSPEC_FTP_USERNAME and FSSPEC_FTP_PASSWORD (ftp), FSSPEC_HTTP=\'{"headers": {"Authorization": "..."}}\' (http)'
)


def _protocols() -> frozenset[str]:
    from fsspec import available_protocols  # only for a URL: a folder needs no fsspec

    return frozenset(available_protocols())
