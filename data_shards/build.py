"""`build_shards`: a source on disk -> a committed shard set. Parallel, restartable, and the same bytes whatever the number of workers.

An unfinished set has a `.build` folder with the plan and one sidecar per finished shard; `manifest.json` is written last and is the commit.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from data_shards.build_shard import WORK_FOLDER, ShardOutcome, ShardTask, build_one_shard, disk_error, read_sidecar
from data_shards.codec import CODEC_VERSION, CODECS
from data_shards.commit_set import MANIFEST, commit_set
from data_shards.errors import DataError, UsageError
from data_shards.index import metadata_of
from data_shards.quality import MILLIVOLT_RANGE
from data_shards.record import SignalSpec
from data_shards.reports import CLEANING_VERSION
from data_shards.shard_writer import commit_file, metadata_bytes
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
) -> BuildReport:
    """Build a shard set in the folder `out`.

    workers: processes, 0 = one per usable core, 1 = in this process. folds: keep only records of these folds. limit: read at most so many entries.
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
    with _claim(out, plan, overwrite):
        return _build(source, out, entries, spec, plan["codec"], records_per_shard, workers, kept_folds, progress, started)


def _build(
    source: Source,
    out: Path,
    entries: list[Entry],
    spec: SignalSpec,
    codec: dict[str, Any],
    records_per_shard: int,
    workers: int,
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
    workers = min(workers or len(os.sched_getaffinity(0)), max(1, len(remaining)))
    log.info("build out=%s entries=%d shards=%d resumed=%d workers=%d", out, len(entries), len(tasks), resumed, workers)
    if workers == 1:
        _build_here(source, remaining, counter)
    else:
        _build_in_processes(source, remaining, workers, counter)
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


@contextlib.contextmanager
def _claim(out: Path, plan: dict[str, Any], overwrite: bool) -> Iterator[None]:
    """Hold `out` for this build alone: new, an unfinished build of the same plan, or (with `overwrite`) emptied.

    The lock goes with the process, however it ends, so a killed build never has to be unlocked by hand.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, not a folder", "name a folder for the shard set")
    if overwrite and out.exists():
        _empty(out)
    if (out / MANIFEST).exists():
        raise DataError(f"{out} already holds a finished shard set", "choose another folder, or build with overwrite to replace it")
    work = out / WORK_FOLDER
    if out.exists() and not work.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty and holds no shard set", "choose an empty or new folder")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another build is writing {out} at this moment", "wait for it, or choose another folder") from error
        _check_plan(out, plan)
        for leftover in (*out.glob(".*.tmp"), *work.glob(".*.tmp")):
            leftover.unlink(missing_ok=True)
        yield


def _check_plan(out: Path, plan: dict[str, Any]) -> None:
    plan_file = out / WORK_FOLDER / "plan.json"
    if not plan_file.exists():
        try:
            commit_file(plan_file, lambda temporary: temporary.write_text(json.dumps(plan, sort_keys=True)))
        except OSError as error:
            raise disk_error(error, plan_file) from error
        return
    other = json.loads(plan_file.read_text())
    differing = sorted(key for key in plan.keys() | other.keys() if plan.get(key) != other.get(key))
    if differing:
        raise DataError(
            f"{out} holds an unfinished build of another plan: {', '.join(differing)} differ",
            "build with the settings it was started with, choose another folder, or build with overwrite to start again",
        )


def _empty(out: Path) -> None:
    """Remove a shard set, finished or not, and nothing else: the manifest first, so that what is left is never taken for a whole set."""
    if not (out / MANIFEST).exists() and not (out / WORK_FOLDER).exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty and holds no shard set; it will not be overwritten", "choose an empty or new folder")
    (out / MANIFEST).unlink(missing_ok=True)
    for pattern in ("shard-*.tar", ".*.tmp", "index.parquet", "reports.parquet", "rejects.csv"):
        for file in out.glob(pattern):
            file.unlink()
    for folder in (WORK_FOLDER, "text_bank"):
        shutil.rmtree(out / folder, ignore_errors=True)


class _ProgressCounter:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done, self._rejected = progress, total, 0, 0

    def add(self, entries: int, rejected: int = 0) -> None:
        self._done += entries
        self._rejected += rejected
        if self._progress is not None:
            self._progress(self._done, self._total, self._rejected)


def _build_here(source: Source, tasks: list[ShardTask], counter: _ProgressCounter) -> None:
    for task in tasks:
        outcome = build_one_shard(source, task, lambda: counter.add(1))
        counter.add(0, outcome.rejected)


_worker_source: Source | None = None


def _start_worker(source: Source) -> None:
    global _worker_source
    _worker_source = source
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A build that is killed outright cannot tell its workers; they must not go on writing beside the build that resumes it."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _work(task: ShardTask) -> ShardOutcome:
    assert _worker_source is not None
    return build_one_shard(_worker_source, task)


def _build_in_processes(source: Source, tasks: list[ShardTask], workers: int, counter: _ProgressCounter) -> None:
    """Spawned processes (safe beside threads, CUDA and Ray); at most two tasks per worker are in flight, so memory does not grow with the set."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(source,))
    try:
        for outcome in _bounded(pool, tasks, 2 * workers):
            counter.add(outcome.entries, outcome.rejected)
    except BrokenProcessPool as error:
        raise DataError(
            "a build process was killed (out of memory, or by someone)",
            "run the same build again with fewer workers: finished shards are kept",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _bounded(pool: ProcessPoolExecutor, tasks: list[ShardTask], in_flight: int) -> Iterator[ShardOutcome]:
    queue = iter(tasks)
    pending: set[Future[ShardOutcome]] = set()
    while True:
        for task in queue:
            pending.add(pool.submit(_work, task))
            if len(pending) >= in_flight:
                break
        if not pending:
            return
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()
