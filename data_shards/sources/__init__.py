"""Data set readers, one file each. `open_source` finds one by name; nothing is imported before it is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.plugins import Table, did_you_mean

if TYPE_CHECKING:
    from cardialign.data_shards.sources.base import Source

ALIASES: dict[str, str] = {"npy": "arrays", "npz": "arrays", "csv": "arrays"}
"""Other words for a source."""


def _no_reader(thing: Any) -> str | None:
    """What keeps a plug-in from being a `sources.base.Source`."""
    if not isinstance(thing, type):
        return f"it is of type {type(thing).__name__}, not a reader class"
    missing = [name for name in ("options", "entries", "read", "describe") if not callable(getattr(thing, name, None))]
    return f"it is no reader: it has no {', '.join(missing)}" if missing else None


SOURCES = Table(
    "source",
    {
        "mimic-iv-ecg": "cardialign.data_shards.sources.mimic_iv_ecg:MimicIvEcg",
        "ptb-xl": "cardialign.data_shards.sources.ptb_xl:PtbXl",
        "cpsc2018": "cardialign.data_shards.sources.cpsc2018:Cpsc2018",
        "csn": "cardialign.data_shards.sources.csn:ChapmanShaoxingNingbo",
        "challenge": "cardialign.data_shards.sources.challenge:Challenge",
        "code15": "cardialign.data_shards.sources.code15:Code15",
        "zzu-pecg": "cardialign.data_shards.sources.zzu_pecg:ZzuPecg",
        "wfdb": "cardialign.data_shards.sources.wfdb_folder:WfdbFolder",
        "arrays": "cardialign.data_shards.sources.arrays:Arrays",
    },
    check=_no_reader,
    aliases=ALIASES,
)
"""Name -> "module:class". A new data set is one file here and one row in this table; template.py is to be copied.

A reader in a package of its own is found by an entry point of the group `cardialign.sources`.
"""


def source_class(name: str) -> type[Source]:
    """The reader class called `name`.

    Raises UsageError for an unknown name, and for a plug-in that cannot be imported or is no reader.
    """
    found: type[Source] = SOURCES.find(name)
    return found


def open_source(name: str, root: str | Path, /, **options: Any) -> Source:
    """Open the data set at `root` with the reader called `name`. Options that are None mean "not given".

    Raises UsageError for an unknown source or option and for a plug-in that is broken, UserError when the folder does
    not have the expected layout.
    """
    cls = source_class(name)
    with SOURCES.blamed(name, "cannot be asked for its options"):
        known = dict(cls.options())
    unknown = [option for option in options if option not in known]
    if unknown:
        described = "; ".join(f"{option}: {text}" for option, text in known.items())
        raise UsageError(
            f"source {name!r} has no option {unknown[0]!r}{did_you_mean(unknown[0], known)}",
            f"its options are {described}",
        )
    if not isinstance(root, str | os.PathLike) or not os.fspath(root):
        raise UsageError(f"source {name!r}: the root is {root!r:.60}", "give the folder of the data set")
    given = {option: value for option, value in options.items() if value is not None}
    with SOURCES.blamed(name, "cannot be opened"):
        return cls(Path(root), **given)  # type: ignore[call-arg]
