"""Several encoders in one evaluation: seeds of a recipe, and what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.files import read_bytes
from cardialign.pretrain.run.integrity import DIGESTS


def refuse_repeats(option: str, encoders: Sequence[str]) -> None:
    """The same encoder twice would count as two seeds, which agree: a spread of 0.

    encoders: in the words of the command line; folders are the same where they are exports of one content. Raises
    UsageError that names both.
    """
    seen: dict[object, str] = {}
    for name in encoders:
        same = _identity(name)
        if same in seen:
            raise UsageError(
                f"{option}: {seen[same]} and {name} are one encoder, and no two seeds of a recipe",
                "give each encoder once",
            )
        seen[same] = name


def _identity(name: str) -> object:
    path = Path(name).expanduser()
    try:
        return read_bytes(path / DIGESTS)
    except OSError:
        return path.resolve() if path.exists() else name
