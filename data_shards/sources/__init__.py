"""Data set readers, one file each. `open_source` finds one by name; nothing is imported before it is asked for."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.plugins import Table

if TYPE_CHECKING:
    from cardialign.data_shards.sources.base import Source

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
)
"""Name -> "module:class". A new data set is one file here and one row in this table; template.py is to be copied.

A reader in a package of its own is found by an entry point of the group `cardialign.sources`.
"""

ALIASES: dict[str, str] = {"npy": "arrays", "npz": "arrays", "csv": "arrays"}
"""Other words for a source."""


def source_class(name: str) -> type[Source]:
    """The reader class called `name`.

    Raises UsageError for an unknown name, and for a plug-in that cannot be imported.
    """
    found: type[Source] = SOURCES.find(ALIASES.get(name, name))
    return found


def open_source(name: str, root: str | Path, **options: Any) -> Source:
    """Open the data set at `root` with the reader called `name`. Options that are None mean "not given".

    Raises UsageError for an unknown source or option, UserError when the folder does not have the expected layout.
    """
    cls = source_class(name)
    known = cls.options()
    unknown = [option for option in options if option not in known]
    if unknown:
        described = "; ".join(f"{option}: {text}" for option, text in known.items())
        raise UsageError(
            f"source {name!r} has no option {unknown[0]!r}{_nearest(unknown[0], known)}", f"its options are {described}"
        )
    return cls(Path(root), **{option: value for option, value in options.items() if value is not None})  # type: ignore[call-arg]


def _nearest(word: str, known: dict[str, str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
