"""What a shard set on disk consists of: the names of its files, the columns of its index, its manifest and its
fingerprint.

A set is a folder of `shard-NNNNNN.tar`, `index.parquet`, `reports.parquet`, `rejects.csv` and, written last,
`manifest.json`. Text banks may be added below `text_bank/`. A set that is still being built has a `.build/` folder and
no manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cardialign.data_shards.errors import DataError, StorageError
from cardialign.data_shards.files import (
    is_count,
    is_plain_name,
    is_sha256,
    open_regular,
    parse_json,
    read_bytes,
    shortened,
)
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.signal.codec import MAX_SAMPLES

SCHEMA_VERSION = 1
MANIFEST, INDEX, REPORTS, REJECTS = "manifest.json", "index.parquet", "reports.parquet", "rejects.csv"
SHARDS = "shard-*.tar"
"""Pattern of the names of shards."""
BANKS, BANK_FILE = "text_bank", "bank.json"
"""The folder of text banks; the file that a bank has when it is whole."""
WORK_FOLDER = ".build"
"""What an unfinished build keeps in the folder of its set."""
_REMEDY = "copy the shard set there again, or build it again"
_MOST_ROWS = (1 << 31) - 1
LEAST_BYTES = 1024
"""Of a record in a shard: the headers of its two members alone."""
_LARGEST_ROW, _LARGEST_TABLE = 1 << 14, 1 << 28
"""Bytes of a row of a table as it lies in memory, where the whole has more than the second."""

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

    Raises DataError for a folder without one, a damaged one, or one of another schema; StorageError when it cannot be
    read.
    """
    file = folder / MANIFEST
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", "name the folder of a shard set")
    try:
        text = read_bytes(file)
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no finished shard set (no {MANIFEST})",
            "finish the build: run the same `cardialign shards build` again"
            if (folder / WORK_FOLDER).exists()
            else "name the --out of a `cardialign shards build`, not the data set that it reads",
        ) from None
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error}", "check the file and the storage it lies on") from error
    return judge_manifest(text, str(file))


def judge_manifest(text: bytes, where: str) -> dict[str, Any]:
    """The manifest in `text`, of a folder or behind a URL: every name is that of a file in the folder, every digest a
    digest, every count a number that can be one.

    Raises DataError that names `where` and what is wrong.
    """
    try:
        manifest: dict[str, Any] = parse_json(text)
        version = _part(manifest, "schema_version", is_count, "a whole number")
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}", _REMEDY) from error
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{where} has schema version {version}; this software reads version {SCHEMA_VERSION}",
            "build the shard set again",
        )
    try:
        _check_form(manifest)
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}", _REMEDY) from error
    return manifest


def _part(values: Any, name: str, fits: Callable[[Any], bool], wanted: str) -> Any:
    """values[name]. Raises ValueError in words when it is absent or does not fit."""
    if not isinstance(values, dict):
        raise ValueError(f"where {name!r} should stand there is {shortened(values)}")
    if name not in values:
        raise ValueError(f"it has no {name!r}")
    if not fits(values[name]):
        raise ValueError(f"{name!r} is {shortened(values[name])}, not {wanted}")
    return values[name]


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _check_form(manifest: dict[str, Any]) -> None:
    """Raise ValueError where a manifest lacks what is read from it, or holds what it cannot."""
    spec = _part(manifest, "spec", _is(dict), "an object")
    rate, seconds = (_part(spec, name, _is_amount, "a positive number") for name in ("sampling_rate", "seconds"))
    samples = _part(spec, "samples", lambda value: is_count(value, MAX_SAMPLES), f"a number up to {MAX_SAMPLES}")
    if not SignalSpec(float(rate), float(seconds)).samples == samples > 0:
        raise ValueError(f"'spec' is {shortened(spec)}: rate and seconds give another number of samples")
    for name, ours in (("leads", list(STANDARD_LEADS)), ("unit", "mV")):  # a set that says nothing is one of ours
        if spec.get(name, ours) != ours:
            raise ValueError(f"{name!r} is {shortened(spec[name])}; this software reads {ours}")
    codec = _part(manifest, "codec", _is(dict), "an object")
    _part(codec, "name", _is(str), "a name")
    _part(codec, "version", is_count, "a whole number")
    counts = _part(manifest, "counts", _is(dict), "an object")
    for name in ("records", "patients", "reports"):
        _part(counts, name, lambda value: is_count(value, _MOST_ROWS), "a count")
    for name in ("rejected", "quality"):
        for slug in _part({name: {}, **counts}, name, _is(dict), "an object"):
            _part(counts[name], slug, is_count, "a count")
    tables = _part(manifest, "tables", _is(dict), "an object")
    for name in dict.fromkeys((INDEX, REPORTS, *tables)):
        _part(tables, name, is_sha256, "a sha256 in 64 hexadecimal digits")
    shards = _part(manifest, "shards", _is(list), "a list")
    _check_shards(shards)
    if (listed := sum(shard["records"] for shard in shards)) != counts["records"]:
        raise ValueError(f"its shards have {listed} records, 'counts' says {counts['records']}")
    _part(manifest, "source", _is(dict), "an object")
    _part(manifest, "fingerprint", is_sha256, "a sha256 in 64 hexadecimal digits")


def _check_shards(shards: list[Any]) -> None:
    names = set()
    for shard in shards:
        name = _part(shard, "name", is_plain_name, "the name of a file in the folder of the set")
        if not fnmatchcase(name, SHARDS):
            raise ValueError(f"'name' is {shortened(name)}; the names of shards are {SHARDS}")
        if name in names:
            raise ValueError(f"shard {name} is listed twice")
        names.add(name)
        _part(shard, "sha256", is_sha256, "a sha256 in 64 hexadecimal digits")
        _part(shard, "bytes", is_count, "a size")
        fits = partial(is_count, most=shard["bytes"] // LEAST_BYTES)
        _part(shard, "records", fits, f"as many records as {name} can hold")


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


def check_unfolded(table: pq.FileMetaData) -> None:
    """Raise ValueError for a table whose rows would take more memory than rows of ours do: some kilobytes of it may
    unfold to any size."""
    size = sum(table.row_group(number).total_byte_size for number in range(table.num_row_groups))
    if size > max(_LARGEST_TABLE, table.num_rows * _LARGEST_ROW):
        raise ValueError(f"its {table.num_rows} rows take {size} bytes, more than {_LARGEST_ROW} a row")


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A whole table of a set, or some of its columns. Raises DataError when it is missing or damaged."""
    try:
        os.close(open_regular(path))
        check_unfolded(pq.read_metadata(path))
        return pq.read_table(path, columns=columns, memory_map=True, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read: {error}", "run `cardialign shards verify` and build the shard set again"
        ) from error
