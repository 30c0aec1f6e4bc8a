"""`verify`: does a shard set hold what its manifest and index promise? Every problem is a sentence that names shard,
record and offset."""

from __future__ import annotations

import logging
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.files import FileFacts, difference, parse_json, read_json, sha256_of
from cardialign.data_shards.shard_set.layout import (
    BANK_FILE,
    BANKS,
    INDEX,
    INDEX_SCHEMA,
    MANIFEST,
    REJECTS,
    REPORTS,
    SHARDS,
    WORK_FOLDER,
    content_fingerprint,
    read_manifest,
    read_parquet,
    spec_of,
)
from cardialign.data_shards.shard_set.remote import RemoteShards, open_remote
from cardialign.data_shards.signal.codec import decode_counts, decode_header
from cardialign.data_shards.text.bank_files import bank_problems

log = logging.getLogger(__name__)
_LEFTOVER = re.compile(rf"\..+\.(tmp|building|vectors)|{re.escape(WORK_FOLDER)}")
_DERIVED = re.compile(r"distant-\d+\.npy")  # made from a bank after it was committed


@dataclass
class Verification:
    """`problems` in sentences, empty when the set is whole; `notes`: files of a folder that belong to nothing, which
    harm no reader. `records` and `shards` looked at; `quick`: sizes and tables only."""

    path: Path
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    records: int = 0
    shards: int = 0
    quick: bool = False

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    path: Path | str, *, quick: bool = False, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Check a shard set and its text banks. quick: presence, sizes and tables; otherwise every byte, member, checksum
    and payload too.

    path: a folder, or a URL whose shards are then fetched one by one (quick: its tables only). progress(shards done,
    shards). Raises DataError only when there is no manifest to verify against.
    """
    remote = open_remote(path)
    path = Path(path) if remote is None else remote.folder
    manifest = read_manifest(path)
    report = Verification(path, quick=quick)
    index = _check_tables(path, manifest, report)
    _check_manifest(manifest, report)
    known = {shard["name"] for shard in manifest["shards"]}
    for stray in sorted(file.name for file in path.glob(SHARDS) if file.name not in known):
        report.problems.append(f"shard {stray} is in the folder but not in the manifest")
    for number, shard in enumerate(manifest["shards"]):
        rows = None if index is None else _rows_of(index, number)
        if rows is not None and rows.num_rows != shard["records"]:
            report.problems.append(
                f"{INDEX} lists {rows.num_rows} records in shard {shard['name']}, the manifest says "
                f"{shard['records']}: stale index"
            )
        if remote is None or not quick:
            try:
                with _located(path, remote, shard["name"]) as file:
                    if _check_shard_file(file, shard, report, quick) and not quick:
                        _check_members(file, shard, rows, manifest["spec"]["samples"], report)
            except DataError as error:  # the URL does not give what the manifest lists
                report.problems.append(error.problem)
            except OSError as error:  # nor does the disk
                report.problems.append(f"shard {shard['name']} cannot be read: {error}")
        report.shards += 1
        if progress is not None:
            progress(report.shards, len(manifest["shards"]))
    for bank in sorted((path / BANKS).glob("[!.]*")):
        if bank.is_dir():
            report.problems += bank_problems(bank, manifest["fingerprint"], quick=quick)
    if remote is None:  # what else lies in the cache of a URL is the cache's own
        report.notes = _stray_files(path)
    log.info(
        "verified path=%s quick=%s shards=%d records=%d problems=%d",
        path,
        quick,
        report.shards,
        report.records,
        len(report.problems),
    )
    return report


def _check_tables(path: Path, manifest: dict[str, Any], report: Verification) -> pa.Table | None:
    """Both tables against the manifest's digests, the index against itself. Returns the index when it can be read."""
    tables: dict[str, pa.Table] = {}
    for name in (INDEX, REPORTS):
        try:
            digest = sha256_of(path / name)
            tables[name] = read_parquet(path / name)
        except (OSError, DataError) as error:  # a pipe in its place is no table either
            report.problems.append(f"{name} cannot be read: {error.problem if isinstance(error, DataError) else error}")
            continue
        if digest != manifest["tables"][name]:
            report.problems.append(
                f"{name} is not the one this set was built with (its sha256 differs): stale or damaged"
            )
    report.problems += _rejects_problems(path, manifest)
    index = tables.get(INDEX)
    if index is None:
        return None
    if not index.schema.equals(INDEX_SCHEMA):
        report.problems.append(f"{INDEX} has other columns than this software writes: {index.schema.names}")
        return None
    if index.num_rows != manifest["counts"]["records"]:
        report.problems.append(
            f"{INDEX} has {index.num_rows} rows, the manifest says {manifest['counts']['records']} records: stale index"
        )
    counts = pc.value_counts(index.column("key"))
    for item in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist():
        report.problems.append(f"record {item['values']} occurs {item['counts']} times in {INDEX}: duplicated key")
    shards = index.column("shard").to_numpy()
    for number in np.unique(shards[(shards < 0) | (shards >= len(manifest["shards"]))]):
        key = index.column("key")[int(np.argmax(shards == number))].as_py()
        report.problems.append(
            f"record {key} lies in shard number {number} according to {INDEX}; the manifest has "
            f"{len(manifest['shards'])} shards"
        )
    if REPORTS in tables:
        rows = index.column("report").to_numpy()
        beyond = np.flatnonzero((rows < -1) | (rows >= tables[REPORTS].num_rows))
        if beyond.size:
            key = index.column("key")[int(beyond[0])].as_py()
            report.problems.append(
                f"record {key} names report {rows[beyond[0]]}, {REPORTS} has {tables[REPORTS].num_rows} rows "
                f"({beyond.size} such records)"
            )
    return index


def _rejects_problems(path: Path, manifest: dict[str, Any]) -> list[str]:
    """The list of rejects may be left out of a copy (it names files of the machine that built the set); another one, of
    a set that says which is its own, is a problem."""
    listed = manifest["tables"].get(REJECTS)
    try:
        differs = listed is not None and sha256_of(path / REJECTS) != listed
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{REJECTS} cannot be read: {error}"]
    return [f"{REJECTS} is not the one this set was built with (its sha256 differs)"] if differs else []


def _check_manifest(manifest: dict[str, Any], report: Verification) -> None:
    if content_fingerprint(spec_of(manifest), manifest["codec"], manifest["shards"]) != manifest["fingerprint"]:
        report.problems.append(
            "the manifest's fingerprint does not follow from its shards: the manifest was changed by hand"
        )


def _rows_of(index: pa.Table, number: int) -> pa.Table:
    return index.filter(pc.equal(index.column("shard"), number))


@contextmanager
def _located(path: Path, remote: RemoteShards | None, name: str) -> Iterator[Path]:
    """Where a shard can be read; one that was fetched is held open, because the cache may drop it meanwhile."""
    if remote is None:
        yield path / name
        return
    descriptor = remote.open(name)
    try:
        yield Path(f"/dev/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _check_shard_file(file: Path, shard: dict[str, Any], report: Verification, quick: bool) -> bool:
    """Presence, size and, unless quick, sha256. True when the file can be looked into."""
    name = shard["name"]
    differing = difference(file, FileFacts(shard["sha256"], shard["bytes"]), quick=quick)
    if differing is None:
        return True
    if differing.kind == "missing":
        report.problems.append(f"shard {name} is missing")
        return False
    if differing.kind == "size":
        size, listed = differing.bytes, differing.listed
        report.problems.append(
            f"shard {name} has {size} bytes, the manifest says {listed}: {'truncated' if size < listed else 'grown'}"
        )
    else:
        report.problems.append(
            f"shard {name} is not the one this set was built with (its sha256 differs): swapped or damaged"
        )
    return True


def _members(file: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the content, size) of every member, as any tar reader sees them.

    Raises tarfile.TarError where the tar is broken.
    """
    with tarfile.open(file, "r:") as tar:
        for member in tar:
            yield member.name, member.offset_data, member.size


def _check_members(
    file: Path, shard: dict[str, Any], rows: pa.Table | None, samples: int, report: Verification
) -> None:
    """The members of one tar against the index rows of its shard, and every payload against its checksum, the codec and
    the spec."""
    name = shard["name"]
    found: dict[str, tuple[int, int]] = {}
    try:
        for member, offset, size in _members(file):
            if member in found:
                report.problems.append(
                    f"shard {name} holds member {member} twice (offsets {found[member][0]} and {offset}): duplicated "
                    "key"
                )
            found[member] = (offset, size)
    except (tarfile.TarError, OSError) as error:
        report.problems.append(f"shard {name} is no whole tar after {len(found)} members: {error}")
    payloads = sum(1 for member in found if member.endswith(".ecg"))
    if payloads != shard["records"]:
        report.problems.append(f"shard {name} holds {payloads} records, the manifest says {shard['records']}")
    if rows is None:
        return
    descriptor = os.open(file, os.O_RDONLY)
    try:
        listed = rows.select(["key", "offset", "size", "crc32", "meta_offset", "meta_size"]).to_pylist()
        absent = [row for row in listed if not {f"{row['key']}.ecg", f"{row['key']}.json"} <= found.keys()]
        if absent:  # one sentence: after a cut, every record from there on is missing
            first = f"record {absent[0]['key']} in shard {name} at offset {absent[0]['offset']}"
            report.problems.append(f"{first}: not in the tar, or not wholly ({len(absent)} such records in this shard)")
        for row in listed:
            report.records += 1
            report.problems += _record_problems(descriptor, name, row, found, samples)
    finally:
        os.close(descriptor)
    for member in sorted(found.keys() - {f"{row['key']}.{kind}" for row in listed for kind in ("ecg", "json")}):
        report.problems.append(
            f"shard {name} holds member {member} at offset {found[member][0]} that {INDEX} does not list: stale index"
        )


def _record_problems(
    descriptor: int, shard: str, row: dict[str, Any], found: dict[str, tuple[int, int]], samples: int
) -> Iterator[str]:
    key = row["key"]
    for kind, offset, size in (("ecg", row["offset"], row["size"]), ("json", row["meta_offset"], row["meta_size"])):
        where = f"record {key} in shard {shard} at offset {offset}"
        if f"{key}.{kind}" not in found:
            continue  # already counted as absent
        if found[f"{key}.{kind}"] != (offset, size):
            yield (
                f"{where}: {INDEX} says {size} bytes there, the tar has {key}.{kind} at {found[f'{key}.{kind}']}: "
                "stale index"
            )
            continue
        content = os.pread(descriptor, min(size, os.fstat(descriptor).st_size), offset)
        if len(content) != size:
            yield f"{where}: the file ends after {len(content)} of {size} bytes: truncated"
        elif kind == "ecg":
            yield from _payload_problems(content, row["crc32"], where, samples)
        else:
            yield from _metadata_problems(content, key, where)


def _payload_problems(content: bytes, crc32: int, where: str, samples: int) -> Iterator[str]:
    if zlib.crc32(content) != crc32:
        yield f"{where}: the payload does not match its crc32"
        return
    try:
        claimed = decode_header(content).samples
        if claimed != samples:  # before memory is taken for them
            yield f"{where}: {claimed} samples, the signal spec says {samples}"
            return
        decode_counts(content, samples=samples)
    except DataError as error:
        yield f"{where}: {error.problem}"


def _metadata_problems(content: bytes, key: str, where: str) -> Iterator[str]:
    try:
        written = parse_json(content)["key"]
    except (ValueError, KeyError, TypeError):
        yield f"{where}: the metadata is no JSON of ours"
        return
    if written != key:
        yield f"{where}: the metadata is that of record {written}"


def _stray_files(folder: Path) -> list[str]:
    """One sentence for every file or folder that neither the manifest nor a text bank lists: harmless for readers, but
    somebody wonders what they are.

    Shards are not looked at: a stray one is a problem.
    """
    known = {MANIFEST, INDEX, REPORTS, REJECTS, BANKS}
    notes = [_note(folder, entry) for entry in _entries(folder) if entry.name not in known and not entry.match(SHARDS)]
    for bank in _entries(folder / BANKS):
        if not bank.is_dir() or bank.name.startswith("."):
            notes.append(_note(folder, bank))
            continue
        listed = _listed(bank)
        if listed is not None:
            notes += [
                _note(folder, file)
                for file in _entries(bank)
                if file.name not in listed and not _DERIVED.fullmatch(file.name)
            ]
    return notes


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _listed(bank: Path) -> set[str] | None:
    """What a bank's description lists; None when that cannot be read, which is a problem of its own."""
    description = read_json(bank / BANK_FILE)
    files, derived = (None, None) if description is None else (description.get("files"), description.get("derived", {}))
    return {BANK_FILE, *files, *derived} if isinstance(files, dict) and isinstance(derived, dict) else None


def _note(folder: Path, entry: Path) -> str:
    size = sum(file.lstat().st_size for file in [entry, *entry.rglob("*")] if not file.is_dir())
    if _LEFTOVER.fullmatch(entry.name):
        why = "left by a build that was interrupted or is still running; delete it when none is running"
    else:
        why = "belongs to nothing here and is not read"
    return f"{entry.relative_to(folder)} ({size:,} bytes): {why}"
