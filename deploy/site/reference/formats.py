"""The page of file formats, from the docstrings of the modules that write them."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

from cardialign.data_shards.shard_set import layout
from cardialign.data_shards.text import bank
from cardialign.pretrain.export import write
from cardialign.pretrain.run import files
from cardialign.pretrain.training.checkpoints import files as checkpoints
from deploy.site.reference.text import page, prose, table

INTRODUCTION = """Everything is a plain file: Parquet, JSON, tar, safetensors, YAML. None that a consumer reads is a
pickle. A file appears by rename when it is whole; what lists the others (`manifest.json`, `digests.json`) is written
last: it is the commit. [SECURITY](../../../../SECURITY.md) has the limits of every reader."""
VERSIONS = """A shard set, an order, a text bank, a prompt set, a protocol and an export have version numbers of their
own. A change to one of them is a new number and a line in the [changelog](../../../../CHANGELOG.md). What today's
release cannot read it refuses with both numbers, and says what to do. A stored run stays readable: old words of a
configuration are read as today's, and a key that is new has a default."""
SET = """A record is two members of a tar, `KEY.ecg` (int16 counts with the gain of each lead, packed without loss) and
`KEY.json`. [The page of the room](../../../../data_shards/shard_set/README.md) says what is compared
when."""


def formats() -> str:
    """The page `reference/formats.md`."""
    columns = table(
        ["column of `index.parquet`", "type"], [[f"`{each.name}`", f"`{each.type}`"] for each in layout.INDEX_SCHEMA]
    )
    return page(
        "File formats",
        INTRODUCTION,
        "## Versions",
        VERSIONS,
        "## A shard set",
        prose(layout.__doc__),
        columns,
        SET,
        "## A text bank",
        prose(bank.__doc__),
        "## A run directory",
        _listed(files),
        "## A checkpoint",
        _listed(checkpoints),
        "## An exported encoder",
        _listed(write),
        "A registered version holds the same files and those that MLflow asks for. `cardialign encoder check FOLDER` "
        "holds each\nway in to the ten ECGs.",
    )


def _listed(module: ModuleType) -> str:
    """The docstring of a module; its lines "name   what it is" as a table."""
    blocks: list[str] = []
    rows: list[list[str]] = []
    text: list[str] = []
    for line in [*inspect.cleandoc(module.__doc__ or "").splitlines(), ""]:
        found = re.fullmatch(r"( *)([\w./<>*-]+(?: [\w.-]+)?)(?: {2,}| (?=\())(\S.*)", line) or re.fullmatch(
            r"( *)(\S+)  +(\S.*)", line
        )
        if found:
            rows.append([f"`{found[2]}`", found[3]])
        else:
            text.append(line)
        if rows and not found:
            blocks.append(table(["file", "what it is"], rows))
            rows = []
        if not line.strip() and any(text):
            blocks.append(prose("\n".join(text)))
            text = []
    return "\n\n".join(filter(None, blocks))
