"""`build_shards`: a source on disk -> a committed shard set. Parallel, restartable, and the same bytes whatever the number of workers.

An unfinished set has a `.build` folder with the plan and one sidecar per finished shard; `manifest.json` is written last and is the commit.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_shards.build_claim import claim
from data_shards.build_executors import BuildExecutor, InThisProcess, Processes
from data_shards.build_shard import ShardTask, disk_error, read_sidecar
from data_shards.codec import CODEC_VERSION, CODECS
from data_shards.commit_set import MANIFEST, commit_set
from data_shards.errors import DataError, UsageError
from data_shards.index import metadata_of
from data_shards.quality import MILLIVOLT_RANGE
from data_shards.record import SignalSpec
from data_shards.reports import CLEANING_VERSION
from data_shards.shard_writer import metadata_bytes
from data_shards.sources.base import Entry, RecordRejected, Source

log = logging.getLogger(__name__)
Progress = Callable[[int, int, int], None]
"""progress(entries done, entries in all, records rejected so far)"""


@dataclass(frozen=True)
class BuildReport:
    """What a build made. `rejected`: reason -> records; `quality`: flag -> records that carry it (`data_shards.quality`); `seconds` of this run (a resumed build counts only what it did itself)."""

    records: int
    rejected: dict[str, int]
    shards: int
    reports: int
    patients: int
    seconds: float
    path: Path
    fingerprint: str = ""
    resumed_shards: int = 0
    bytes: int = 0
    quality: dict[str, int] = field(default_factory=dict)


def build_shards(
    source: Source,
    out: Path,
    *,
    spec: SignalSpec | None = None,
    codec: str = "einthoven",
    records_per_shard: int = 2048,
    workers: int = 0,
    folds: Sequence[int] | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    executor: BuildExecutor | None = None,
) -> BuildReport:
    """Build a shard set in the folder `out`.

    workers: processes, 0 = one per usable core, 1 = in this process; executor: where the tasks run instead. folds: keep only records of these folds. limit: read at most so many entries.
    An interrupted build of the same plan goes on where it stopped. Raises UsageError for settings out of range; DataError when `out` holds a
    finished set (unless `overwrite`), an unfinished build of another plan, or something else; when the disk is full; when no record is usable.
    """
    started = time.monotonic()
    out = Path(out)
    spec = spec or SignalSpec()
    _check_settings(codec, records_per_shard, workers, limit, spec)
    kept_folds = None if folds is None else tuple(sorted(set(folds)))
    entries = _entries(source, kept_folds, limit)
    plan = _plan(source, entries, spec, codec, records_per_shard, kept_folds)
    with claim(out, plan, overwrite):
        return _build(source, out, entries, spec, plan["codec"], records_per_shard, workers, executor, kept_folds, progress, started)


def _build(
    source: Source,
    out: Path,
    entries: list[Entry],
    spec: SignalSpec,
    codec: dict[str, Any],
    records_per_shard: int,
    workers: int,
    executor: BuildExecutor | None,
    folds: tuple[int, ...] | None,
    progress: Progress | None,
    started: float,
) -> BuildReport:
    tasks = [
        ShardTask(number, tuple(entries[at : at + records_per_shard]), out, spec, codec["name"], folds)
        for number, at in enumerate(range(0, len(entries), records_per_shard))
    ]
    counter = _ProgressCounter(progress, len(entries))
    remaining = []
    for task in tasks:
        facts = read_sidecar(out, task.number)
        if facts is None:
            remaining.append(task)
        else:
            counter.add(len(task.entries), len(facts["rejects"]))
    resumed = len(tasks) - len(remaining)
    if executor is None:
        workers = min(workers or len(os.sched_getaffinity(0)), max(1, len(remaining)))
        executor = InThisProcess() if workers == 1 else Processes(workers)
    log.info("build out=%s entries=%d shards=%d resumed=%d executor=%s", out, len(entries), len(tasks), resumed, executor)
    for outcome in executor.run(source, remaining, counter.add):
        log.debug("shard entries=%d records=%d rejected=%d", outcome.entries, outcome.records, outcome.rejected)
    try:
        manifest = commit_set(out, len(tasks), source, spec, codec)
    except OSError as error:
        raise disk_error(error, out / MANIFEST) from error
    counts = manifest["counts"]
    log.info("built out=%s records=%d rejected=%s fingerprint=%s", out, counts["records"], counts["rejected"], manifest["fingerprint"])
    suspect = counts["quality"].get("gain-suspect", 0)
    if suspect:
        log.warning(
            "gain-suspect records=%d of=%d: median amplitudes outside %g .. %g mV, check the gain of the files",
            suspect,
            counts["records"],
            *MILLIVOLT_RANGE,
        )
    return BuildReport(
        records=counts["records"],
        rejected=counts["rejected"],
        shards=len(manifest["shards"]),
        reports=counts["reports"],
        patients=counts["patients"],
        seconds=time.monotonic() - started,
        path=out,
        fingerprint=manifest["fingerprint"],
        resumed_shards=resumed,
        bytes=sum(shard["bytes"] for shard in manifest["shards"]),
        quality=counts["quality"],
    )


def _check_settings(codec: str, records_per_shard: int, workers: int, limit: int | None, spec: SignalSpec) -> None:
    if codec not in CODECS:
        raise UsageError(f"unknown codec {codec!r}", f"choose one of {', '.join(CODECS)}")
    for name, value, least in (
        ("records_per_shard", records_per_shard, 1),
        ("workers", workers, 0),
        ("limit", limit, 1),
        ("samples", spec.samples, 1),
    ):
        if value is not None and value < least:
            raise UsageError(f"{name} is {value}; it must be at least {least}", f"set {name} to {least} or more")


def _entries(source: Source, folds: tuple[int, ...] | None, limit: int | None) -> list[Entry]:
    entries = source.entries()
    seen: set[str] = set()
    for entry in entries:
        if entry.key in seen:
            raise DataError(
                f"{source.name}: record key {entry.key!r} occurs more than once in the listing", "remove the duplicate from the tables"
            )
        seen.add(entry.key)
    if folds is not None:  # a fold that the listing knows saves reading the signal; the others are filtered after reading
        entries = [entry for entry in entries if not isinstance(fold := entry.meta.get("fold"), int) or fold in folds]
    entries = entries[:limit]
    if not entries:
        raise DataError(f"{source.name}: no record to read under {source.root}" + (f" in folds {list(folds)}" if folds is not None else ""))
    return entries


def _plan(
    source: Source, entries: list[Entry], spec: SignalSpec, codec: str, records_per_shard: int, folds: tuple[int, ...] | None
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(json.dumps([entry.key, entry.path, entry.meta], sort_keys=True, default=str).encode() + b"\n")
    plan = {
        "source": source.describe(),
        "spec": asdict(spec),
        "codec": {"name": codec, "version": CODEC_VERSION, "pcodec": importlib.metadata.version("pcodec")},
        "cleaning_version": CLEANING_VERSION,
        "records_per_shard": records_per_shard,
        "folds": folds,
        "first_record": _first_record(source, entries),
        "entries": {"number": len(entries), "sha256": digest.hexdigest()},
    }
    return json.loads(json.dumps(plan, default=str))


def _first_record(source: Source, entries: list[Entry]) -> str:
    """Digest of what the reader makes of the first readable record. The source does not tell its salt; this notices that it changed."""
    for entry in entries[:100]:
        try:
            return hashlib.sha256(metadata_bytes(metadata_of(source.read(entry)))).hexdigest()
        except RecordRejected:
            continue
        except Exception as error:  # the build itself will report it with its record, and keep the shards before it
            return type(error).__name__
    return ""


class _ProgressCounter:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done, self._rejected = progress, total, 0, 0

    def add(self, entries: int, rejected: int = 0) -> None:
        self._done += entries
        self._rejected += rejected
        if self._progress is not None:
            self._progress(self._done, self._total, self._rejected)
