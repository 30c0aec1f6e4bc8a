"""What every data set reader shares: the `Source` protocol and its `Entry`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cardialign.data_shards.reading.walk import NotSeen
from cardialign.data_shards.record import EcgRecord

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
"""Keys become member names of tar files: no dot (webdataset splits names there), no slash, no space."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a listing: a unique `key`, the record's `path` below the root (no suffix), and what the tables say
    about it (`meta`): text, numbers, None, and tuples, lists and dicts of them."""

    key: str
    path: str
    meta: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Walked(Protocol):
    """A source that knows what it could not look at."""

    def not_seen(self) -> list[NotSeen]:
        """Folders that cannot be listed and the like, after `entries`."""
        ...


@runtime_checkable
class Source(Protocol):
    """A data set on disk. Picklable before and after `entries()`, so that worker processes can `read`."""

    name: str
    root: Path
    label_sets: tuple[str, ...]

    @classmethod
    def options(cls) -> dict[str, str]:
        """Option name -> one line of help."""
        ...

    def entries(self) -> Iterable[Entry]:
        """All records in a deterministic order, tables joined by key; a new walk at every call, of which a large set
        yields one by one.

        That no key occurs twice is for the caller to check. Raises UserError/DataError, in the walk or before it, when
        the set as a whole is unusable. Only after a whole walk does `describe` know the tables.
        """
        ...

    def read(self, entry: Entry) -> EcgRecord:
        """One record. Raises RecordRejected for a bad record."""
        ...

    def describe(self) -> dict[str, Any]:
        """Options and provenance for the manifest: no absolute path, no date, never the salt."""
        ...
