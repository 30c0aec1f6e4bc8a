"""Where a shard set lies: a folder of this machine, or a URL that fsspec reaches. The one judge of what is given."""

from __future__ import annotations

import re
from pathlib import Path

from cardialign.data_shards.errors import DataError, UserError

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
    files, and chains of several; UserError for a protocol that fsspec does not know.
    """
    text, shown = str(location), without_password(str(location))
    if re.match(r"\s*pipe:", text, re.IGNORECASE):
        raise DataError(f"{shown!r} runs a shell command instead of naming a place", _REMEDY)
    if "::" in _IPV6_HOST.sub("//host", text, count=1) and _PROTOCOL.match(text) and not Path(text).exists():
        raise DataError(f"{shown!r} chains several places instead of naming one", _REMEDY)
    match = _URL.fullmatch(text)
    if match is None or ("://" not in text and Path(text).exists()):
        return None
    protocol, _, rest = match.groups()
    protocol = protocol.lower()
    if protocol in INDIRECT:
        raise DataError(f"{shown!r} is no place of its own: {protocol}:// looks into something else", _REMEDY)
    if protocol not in _protocols():
        raise UserError(
            f"{shown}: protocol {protocol}:// is not known",
            "use one that fsspec knows, such as s3, gs, abfs, http or file",
        )
    return f"{protocol}://{'/' if protocol in ('file', 'local') else ''}{rest.lstrip('/')}".rstrip("/")


def without_password(text: str) -> str:
    """A text in which URLs may stand, as it can be shown and logged."""
    return re.sub(r"(:/{1,3}[^/@\s:]*):[^/@\s]*@", r"\1:***@", text)


_REMEDY = "give a folder or a URL such as s3://bucket/set"


def _protocols() -> frozenset[str]:
    from fsspec import available_protocols  # only for a URL: a folder needs no fsspec

    return frozenset(available_protocols())
