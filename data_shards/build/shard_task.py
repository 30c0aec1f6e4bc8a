"""One task of a build: one slice of a source's entries -> one committed shard and, beside it, the facts the index needs
about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cardialign.data_shards.build.index_rows import index_row, pack_record
from cardialign.data_shards.build.listing import LISTING, Slice, read_slice
from cardialign.data_shards.build.shard_writer import ShardWriter
from cardialign.data_shards.errors import DataError, RecordRejected, disk_error
from cardialign.data_shards.files import write_json
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.layout import WORK_FOLDER, shard_name
from cardialign.data_shards.signal.conform import conform
from cardialign.data_shards.sources.base import Entry, Source


@dataclass(frozen=True)
class ShardTask:
    """What one shard is made of: the entries of `slice`, in the order of the listing in `out`'s work folder; `folds`
    None = all."""

    number: int
    slice: Slice
    out: Path
    spec: SignalSpec
    codec: str
    folds: tuple[int, ...] | None


@dataclass(frozen=True)
class ShardOutcome:
    """Counts of one finished task: entries read, records written, records turned away."""

    entries: int
    records: int
    rejected: int


def sidecar_path(out: Path, number: int) -> Path:
    return out / WORK_FOLDER / f"shard-{number:06d}.json"


def build_one_shard(source: Source, task: ShardTask, on_entry: Callable[[bool], None] | None = None) -> ShardOutcome:
    """Read, conform, encode and write one slice.

    A slice without a usable record leaves no tar, only its sidecar. on_entry(rejected) per entry.

    The sidecar is committed after the tar, so its presence says that the tar is whole. Raises DataError when the
    listing is damaged, when the disk is full, or when a source fails on a record in a way it does not declare
    (`RecordRejected` is counted instead).
    """
    path = task.out / shard_name(task.number)
    entries = read_slice(task.out / WORK_FOLDER / LISTING, task.slice)
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, str]] = []
    done = 0
    writer: ShardWriter | None = None
    try:
        writer = ShardWriter(path)
        for entry in entries:
            before = len(rejects)
            record = _read(source, entry, task, rejects)
            if record is not None:
                payload, meta = pack_record(record, task.codec)
                rows.append(index_row(record, writer.add(record.key, payload, meta)))
            done += 1
            if on_entry is not None:
                on_entry(len(rejects) > before)
        shard: dict[str, Any] | None = None
        if rows:
            shard = asdict(writer.commit())
        else:
            path.unlink(missing_ok=True)
        facts = {"shard": shard, "rows": rows, "rejects": rejects}
        write_json(sidecar_path(task.out, task.number), facts, ensure_ascii=False)
    except OSError as error:
        raise disk_error(error, path, writer.bytes if writer else 0, done, len(entries)) from error
    finally:
        if writer is not None:
            writer.abandon()
    return ShardOutcome(len(entries), len(rows), len(rejects))


def _read(source: Source, entry: Entry, task: ShardTask, rejects: list[dict[str, str]]) -> EcgRecord | None:
    try:
        record = source.read(entry)
        if task.folds is not None and record.fold not in task.folds:
            return None
        return conform(record, task.spec)
    except RecordRejected as rejection:
        rejects.append({"key": entry.key, "path": entry.path, "reason": rejection.reason, "detail": rejection.detail})
        return None
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"record {entry.key} ({entry.path}): the {source.name} reader failed with {type(error).__name__}: {error}",
            "check that the file may be read; else report it: a reader should turn a bad record away with a reason",
        ) from error


def read_sidecar(out: Path, number: int) -> dict[str, Any] | None:
    """The facts about a finished slice, None when it is unfinished: no sidecar, or its tar is missing or has another
    size."""
    path = sidecar_path(out, number)
    if not path.exists():
        return None
    facts: dict[str, Any] = json.loads(path.read_text())
    shard = facts["shard"]
    if shard is not None:
        tar = out / shard["name"]
        if not tar.exists() or tar.stat().st_size != shard["bytes"]:
            return None
    return facts
