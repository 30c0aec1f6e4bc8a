"""One task of a build: one slice of a source's entries -> one committed shard and, beside it, the facts the index needs
about it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cardialign.data_shards.build.index_rows import index_row, pack_record
from cardialign.data_shards.build.listing import LISTING, Slice, read_slice
from cardialign.data_shards.build.shard_writer import ShardWriter
from cardialign.data_shards.errors import DataError, RecordRejected, disk_error
from cardialign.data_shards.files import read_json, write_json
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.layout import WORK_FOLDER, shard_name
from cardialign.data_shards.shown import shown
from cardialign.data_shards.signal.conform import conform
from cardialign.data_shards.sources.base import Entry, Source
from cardialign.data_shards.sources.shared.ids import LAST_FOLD

UNDECLARED = "reader-failed"
"""Reason of a record on which its reader failed in a way that it does not declare: a bad file, or a fault of the
reader."""
LONGEST_DETAIL = 2000
MOST_CHANNELS = 1000
"""Names of channels that one slice keeps."""


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

    A record that the reader rejects, or fails on in a way that it does not declare (`UNDECLARED`), is turned away with
    the reason; of the latter the sidecar keeps one traceback of each kind.

    The sidecar is committed after the tar, so its presence says that the tar is whole. Raises DataError when the
    listing is damaged, when the disk is full, or when the source says that the set as a whole is unusable.
    """
    path = task.out / shard_name(task.number)
    entries = read_slice(task.out / WORK_FOLDER / LISTING, task.slice)
    facts = _Facts(source.name, getattr(source, "hides_names", False))
    done = 0
    writer: ShardWriter | None = None
    try:
        writer = ShardWriter(path)
        for entry in entries:
            before = len(facts.rejects)
            _add(source, entry, task, writer, facts)
            done += 1
            if on_entry is not None:
                on_entry(len(facts.rejects) > before)
        shard: dict[str, Any] | None = None
        if facts.rows:
            shard = asdict(writer.commit())
        else:
            path.unlink(missing_ok=True)
        told = {"shard": shard, "rows": facts.rows, "rejects": facts.rejects, "failures": facts.failures}
        told["channels"] = facts.channels
        write_json(sidecar_path(task.out, task.number), told, ensure_ascii=False)
    except OSError as error:
        raise disk_error(error, path, writer.bytes if writer else 0, done, len(entries)) from error
    finally:
        if writer is not None:
            writer.abandon()
    return ShardOutcome(len(entries), len(facts.rows), len(facts.rejects))


@dataclass
class _Facts:
    """What the index needs about one slice, and the records that are turned away. failures: kind of an undeclared
    failure -> its first traceback. channels: name of a channel that is no standard lead -> records that lack a lead and
    have it."""

    source: str
    hides_names: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, str]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)

    def turn_away(self, entry: Entry, reason: str, detail: str) -> None:
        told = {"key": entry.key, "path": "" if self.hides_names else entry.path, "reason": reason, "detail": detail}
        self.rejects.append({name: _told(text) for name, text in told.items()})

    def added(self, record: EcgRecord, row: dict[str, Any]) -> None:
        self.rows.append(row)
        others = () if record.lead_mask.all() else record.extra.get("other_channels", ())
        for name in {_told(str(name)) for name in others}:
            if name in self.channels or len(self.channels) < MOST_CHANNELS:
                self.channels[name] = self.channels.get(name, 0) + 1

    def failed(self, entry: Entry, error: Exception) -> None:
        name = type(error).__name__
        self.turn_away(entry, UNDECLARED, f"undeclared {name} in {self.source}: {_text_of(error)}")
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{name} in {last.name} ({Path(last.filename).name}:{last.lineno})"
        if kind not in self.failures:
            told = "".join(traceback.format_exception(error))[-10 * LONGEST_DETAIL :]
            self.failures[kind] = shown(told, lines=True)


def _add(source: Source, entry: Entry, task: ShardTask, writer: ShardWriter, facts: _Facts) -> None:
    """Add one record to the shard, unless it is of another fold or turned away. Raises OSError when the disk is full,
    and DataError when the source says that the set as a whole is unusable."""
    try:
        record = source.read(entry)
        if task.folds is not None and record.fold not in task.folds:
            return
        record = conform(record, task.spec)
        if not 0 <= record.fold <= LAST_FOLD:
            raise RecordRejected("bad-metadata", f"{record.key}: a fold that is none from 0 to {LAST_FOLD}")
        payload, meta = pack_record(record, task.codec)
    except RecordRejected as rejection:
        facts.turn_away(entry, rejection.reason, rejection.detail)
        return
    except DataError:
        raise
    except Exception as error:  # whatever one file does to its reader, the others are read
        facts.failed(entry, error)
        return
    try:
        facts.added(record, index_row(record, writer.add(record.key, payload, meta)))
    except RecordRejected as rejection:
        facts.turn_away(entry, rejection.reason, rejection.detail)


def _text_of(error: Exception) -> str:
    try:
        return str(error)[:LONGEST_DETAIL]
    except Exception:  # a message of thousands of digits cannot be written, either
        return "no message"


def _told(text: str) -> str:
    """Text for tables and terminals, of a length that both bear."""
    return shown(text if len(text) <= LONGEST_DETAIL else f"{text[:LONGEST_DETAIL]} ...")


_RECORD_SUFFIXES = ("", ".hea", ".dat", ".mat")
"""Of a file that is named itself, or of a header and its signal."""


def changed_since(source: Source, task: ShardTask) -> str:
    """The first recording of a finished shard whose files, as they are named after it, are newer than the shard: who
    corrects one and builds again wants that one. "" where none is; sources without a root say nothing."""
    root = getattr(source, "root", None)
    if root is None:
        return ""
    written = sidecar_path(task.out, task.number).stat().st_mtime
    for entry in read_slice(task.out / WORK_FOLDER / LISTING, task.slice):
        there = 0
        for suffix in _RECORD_SUFFIXES:
            with suppress(OSError, ValueError):
                facts = os.stat(f"{root}/{entry.path}{suffix}")
                if max(facts.st_mtime, facts.st_ctime) > written:
                    return f"{entry.path}{suffix}"
                there += 1
            if there == 2 or (there == 1 and not suffix):  # a header and its signal, or the one file of its name
                break
    return ""


def read_sidecar(out: Path, number: int) -> dict[str, Any] | None:
    """The facts about a finished slice, None when it is unfinished: no sidecar or a damaged one, or its tar is missing
    or has another size."""
    facts = read_json(sidecar_path(out, number))
    if facts is None or not {"shard", "rows", "rejects"} <= facts.keys():
        return None
    shard = facts["shard"]
    if shard is not None:
        tar = out / shard["name"]
        if not tar.exists() or tar.stat().st_size != shard["bytes"]:
            return None
    return facts
