"""Where a shard set lies: a folder of this machine, or a URL that fsspec reaches."""

from __future__ import annotations

import re
from pathlib import Path

from cardialign.data_shards.errors import DataError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/{1,3})(.*)", re.DOTALL)


def url_of(location: Path | str) -> str | None:
    """The URL that `location` is, None for a folder. A URL that went through `Path` (which folds "//") is restored.

    Raises DataError for `pipe:`, which would run a shell command.
    """
    text = str(location)
    if text.startswith("pipe:"):
        raise DataError(
            f"{text!r} runs a shell command instead of naming a place", "give a folder or a URL such as s3://bucket/set"
        )
    match = _URL.fullmatch(text)
    if match is None or ("://" not in text and Path(text).exists()):
        return None
    protocol, _, rest = match.groups()
    return f"{protocol}://{'/' if protocol in ('file', 'local') else ''}{rest.lstrip('/')}".rstrip("/")
