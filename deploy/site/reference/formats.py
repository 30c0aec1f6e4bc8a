"""The page of file formats, from the docstrings of the modules that write them."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

from cardialign.data_shards.order import global_order
from cardialign.data_shards.shard_set import bank_description, layout, overlay
from cardialign.data_shards.signal import codec
from cardialign.data_shards.text import bank
from cardialign.pretrain.export import contract, missing_card, write
from cardialign.pretrain.export.exposure import certificate
from cardialign.pretrain.run import files, integrity
from cardialign.pretrain.training.checkpoints import files as checkpoints
from deploy.site.reference.text import page, prose, table

INTRODUCTION = """Everything is a plain file: Parquet, JSON, tar, safetensors, YAML. None that a consumer reads is a
pickle. A file appears by rename when it is whole; what lists the others (`manifest.json`, `digests.json`) is written
last: it is the commit. [SECURITY](../../../../SECURITY.md) has the limits of every reader."""
VERSIONS = """What outlives a release has a number of its own. A change that another release would read wrong is a new
number and a line in the [changelog](../../../../CHANGELOG.md). Exports and checkpoints of the number before are read;
what can be made again from what it came from is not, and is made anew. Whatever is not read is refused, with what
to do. Prompt sets, protocols and recipes are never changed once released: another one has another
name. Files of a run without a number (`config.resolved.json`, `tracking.json`, `metrics.jsonl`) are read as they were
written: old words of a configuration are today's, and a key that is new has a default."""
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
        _versions(),
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


def _versions() -> str:
    """Of each format today's number, the numbers that are read, and what to do with another one."""
    anew = "build it again"
    rows: list[tuple[str, int, tuple[int, ...], str]] = [
        ("shard set (`manifest.json`)", layout.SCHEMA_VERSION, (layout.SCHEMA_VERSION,), anew),
        ("payload of a record (`KEY.ecg`)", codec.CODEC_VERSION, (codec.CODEC_VERSION,), anew),
        ("reports beside a set", overlay.OVERLAY_VERSION, (overlay.OVERLAY_VERSION,), "write them again"),
        (
            "text bank",
            bank_description.BANK_VERSION,
            (bank_description.BANK_VERSION,),
            "`text-bank build` makes it anew",
        ),
        ("global order", global_order.ORDER_VERSION, (global_order.ORDER_VERSION,), "end the run with its own release"),
        ("checkpoint", checkpoints.FORMAT_VERSION, checkpoints.READABLE, "use the release that wrote it"),
        ("exported encoder", integrity.EXPORT_VERSION, integrity.READABLE, "use the release that wrote it"),
        ("signal contract", contract.CONTRACT_VERSION, (contract.CONTRACT_VERSION,), "use the release that wrote it"),
        ("missingness card", missing_card.CARD_VERSION, (missing_card.CARD_VERSION,), "measure it again"),
        (
            "exposure certificate and proof",
            certificate.VERSION,
            (certificate.VERSION,),
            "use the release that wrote it",
        ),
    ]
    head = ["format", "number", "read", "with another one"]
    return table(head, [[what, str(now), " and ".join(map(str, read)), then] for what, now, read, then in rows])


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
