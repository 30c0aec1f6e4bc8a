"""What a shard set on disk consists of: the names of its files, the columns of its index, its manifest and its
fingerprint.

A set is a folder of `shard-NNNNNN.tar`, `index.parquet`, `reports.parquet`, `rejects.csv` and, written last,
`manifest.json`. Text banks may be added below `text_bank/`. A set that is still being built has a `.build/` folder and
no manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.record import SignalSpec

SCHEMA_VERSION = 1
MANIFEST, INDEX, REPORTS, REJECTS = "manifest.json", "index.parquet", "reports.parquet", "rejects.csv"
SHARDS = "shard-*.tar"
"""Pattern of the names of shards."""
BANKS, BANK_FILE = "text_bank", "bank.json"
"""The folder of text banks; the file that a bank has when it is whole."""
WORK_FOLDER = ".build"
"""What an unfinished build keeps in the folder of its set."""

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("crc32", pa.int64()),
        ("patient", pa.string()),
        ("fold", pa.int16()),
        ("report", pa.int32()),
        ("labels", pa.list_(pa.string())),
        ("age_years", pa.float32()),
        ("sex", pa.string()),
        ("lead_mask", pa.uint16()),
        ("quality", pa.uint32()),
        ("meta_offset", pa.int64()),
        ("meta_size", pa.int32()),
    ]
)
"""One row per record, in the order of the shards; offset, size and crc32 are those of the record's payload in its
shard.

labels: "set:code"; a set that is present without a code is "set:", so that "labelled, none apply" differs from "not
labelled".
"""


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished set.

    Raises DataError for a folder without one, a damaged one, or one of another schema.
    """
    file = folder / MANIFEST
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", "name the folder of a shard set")
    if not file.exists():
        raise DataError(
            f"{folder} holds no finished shard set (no {MANIFEST})",
            "finish the build: run the same `cardialign shards build` again",
        )
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged: {error}", "build the shard set again") from error
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{file} has schema version {version}; this software reads version {SCHEMA_VERSION}",
            "build the shard set again",
        )
    try:
        _check_form(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{file} is damaged: {type(error).__name__}: {error}", "build the shard set again") from error
    return manifest


def _check_form(manifest: dict[str, Any]) -> None:
    """Raise what Python raises where a manifest lacks what is read from it, or holds it in another form."""
    spec, counts, tables = manifest["spec"], manifest["counts"], manifest["tables"]
    if not SignalSpec(float(spec["sampling_rate"]), float(spec["seconds"])).samples == int(spec["samples"]) > 0:
        raise ValueError(f"spec is {spec}")
    for shard in manifest["shards"]:
        _ = str(shard["name"]), str(shard["sha256"]), int(shard["bytes"]), int(shard["records"])
    _ = int(counts["records"]), counts["reports"], tables[INDEX], tables[REPORTS], manifest["source"].get("name")
    _ = manifest["fingerprint"], manifest["codec"]


def spec_of(manifest: Mapping[str, Any]) -> SignalSpec:
    """What every record of the set conforms to."""
    return SignalSpec(manifest["spec"]["sampling_rate"], manifest["spec"]["seconds"])


def content_fingerprint(spec: SignalSpec, codec: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]) -> str:
    """sha256 over what a set holds: spec, codec and the content of every shard in order.

    Independent of folders, names and dates.

    codec, shards: as the manifest holds them.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "spec": asdict(spec),
        "codec": [codec["name"], codec["version"]],
        "shards": [[shard["records"], shard["sha256"]] for shard in shards],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A whole table of a set, or some of its columns. Raises DataError when it is missing or damaged."""
    try:
        return pq.read_table(path, columns=columns, memory_map=True, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read: {error}", "run `cardialign shards verify` and build the shard set again"
        ) from error
