"""`build_shards`: a source on disk -> a committed shard set. Parallel, restartable, and the same bytes whatever the number of workers.

An unfinished set has a `.build` folder with the listing, the plan and one sidecar per finished shard; `manifest.json` is written last and is the
commit. The source is walked once; from then on a shard's entries are read from the listing, so that no part of the build holds all of them.
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
from itertools import islice
from pathlib import Path
from typing import Any

from cardialign.data_shards.build.claim import begin, claim
from cardialign.data_shards.build.commit import commit_set
from cardialign.data_shards.build.executors import BuildExecutor, InThisProcess, Processes
from cardialign.data_shards.build.index_rows import metadata_of
from cardialign.data_shards.build.listing import LISTING, Listing, Slice, write_listing
from cardialign.data_shards.build.shard_task import ShardTask, read_sidecar
from cardialign.data_shards.build.shard_writer import metadata_bytes
from cardialign.data_shards.errors import RecordRejected, UsageError, disk_error
from cardialign.data_shards.files import temporary_path
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.report_text import CLEANING_VERSION
from cardialign.data_shards.shard_set.layout import MANIFEST, WORK_FOLDER
from cardialign.data_shards.signal.codec import CODEC_VERSION, CODECS
from cardialign.data_shards.signal.quality import MILLIVOLT_RANGE
from cardialign.data_shards.sources.base import Source

log = logging.getLogger(__name__)
Progress = Callable[[int, int, int], None]
"""progress(entries done, entries in all, records rejected so far); while the source is listed: progress(entries listed, 0, 0)"""


@dataclass(frozen=True)
class BuildReport:
    """What a build made. `rejected`: reason -> records; `quality`: flag -> records that carry it (`cardialign.data_shards.signal.quality`); `seconds` of this run (a resumed build counts only what it did itself)."""

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
    listed = None if progress is None else lambda records: progress(records, 0, 0)
    with claim(out, overwrite):
        place = out / WORK_FOLDER / LISTING
        unfinished = temporary_path(place)
        try:
            listing = write_listing(
                source, unfinished, records_per_shard, folds=kept_folds, limit=limit, progress=listed
            )
            plan = _plan(source, listing, spec, codec, records_per_shard, kept_folds)
            begin(out, plan, overwrite)
            os.replace(unfinished, place)
        finally:
            unfinished.unlink(missing_ok=True)
        return _build(
            source, out, listing.slices, spec, plan["codec"], workers, executor, kept_folds, progress, started
        )


def _build(
    source: Source,
    out: Path,
    slices: Sequence[Slice],
    spec: SignalSpec,
    codec: dict[str, Any],
    workers: int,
    executor: BuildExecutor | None,
    folds: tuple[int, ...] | None,
    progress: Progress | None,
    started: float,
) -> BuildReport:
    tasks = [ShardTask(number, part, out, spec, codec["name"], folds) for number, part in enumerate(slices)]
    entries = sum(part.entries for part in slices)
    counter = _ProgressCounter(progress, entries)
    remaining = []
    for task in tasks:
        facts = read_sidecar(out, task.number)
        if facts is None:
            remaining.append(task)
        else:
            counter.add(task.slice.entries, len(facts["rejects"]))
    resumed = len(tasks) - len(remaining)
    if executor is None:
        workers = min(workers or len(os.sched_getaffinity(0)), max(1, len(remaining)))
        executor = InThisProcess() if workers == 1 else Processes(workers)
    log.info("build out=%s entries=%d shards=%d resumed=%d executor=%s", out, entries, len(tasks), resumed, executor)
    for outcome in executor.run(source, remaining, counter.add):
        log.debug("shard entries=%d records=%d rejected=%d", outcome.entries, outcome.records, outcome.rejected)
    try:
        manifest = commit_set(out, len(tasks), source, spec, codec)
    except OSError as error:
        raise disk_error(error, out / MANIFEST) from error
    counts = manifest["counts"]
    log.info(
        "built out=%s records=%d rejected=%s fingerprint=%s",
        out,
        counts["records"],
        counts["rejected"],
        manifest["fingerprint"],
    )
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


def _plan(
    source: Source,
    listing: Listing,
    spec: SignalSpec,
    codec: str,
    records_per_shard: int,
    folds: tuple[int, ...] | None,
) -> dict[str, Any]:
    plan = {
        "source": source.describe(),
        "spec": asdict(spec),
        "codec": {"name": codec, "version": CODEC_VERSION, "pcodec": importlib.metadata.version("pcodec")},
        "cleaning_version": CLEANING_VERSION,
        "records_per_shard": records_per_shard,
        "folds": folds,
        "first_record": _first_record(source, listing),
        "entries": {"number": len(listing), "sha256": listing.sha256},
    }
    return json.loads(json.dumps(plan, default=str))


def _first_record(source: Source, listing: Listing) -> str:
    """Digest of what the reader makes of the first readable record. The source does not tell its salt; this notices that it changed."""
    for entry in islice(listing, 100):
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
