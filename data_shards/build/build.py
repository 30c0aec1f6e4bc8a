"""`build_shards`: a source on disk -> a committed shard set.

Parallel, restartable, and the same bytes whatever the number of workers.

An unfinished set has a `.build` folder with the listing, the plan and one sidecar per finished shard; `manifest.json`
is written last and is the commit. The source is walked once; from then on a shard's entries are read from the listing,
so that no part of the build holds all of them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from cardialign.data_shards.build.claim import begin, claim
from cardialign.data_shards.build.commit import commit_set
from cardialign.data_shards.build.executors import BuildExecutor, InThisProcess, Processes
from cardialign.data_shards.build.index_rows import metadata_of
from cardialign.data_shards.build.listing import LISTING, Listing, Slice, write_listing
from cardialign.data_shards.build.shard_task import ShardTask, changed_since, read_sidecar
from cardialign.data_shards.build.shard_writer import metadata_bytes
from cardialign.data_shards.cpus import usable_cpus
from cardialign.data_shards.errors import DataError, UsageError, disk_error
from cardialign.data_shards.files import temporary_path
from cardialign.data_shards.given_numbers import fold_numbers, positive_number, whole_number
from cardialign.data_shards.locations import url_of
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.report_text import CLEANING_VERSION
from cardialign.data_shards.shard_set.layout import MANIFEST, WORK_FOLDER
from cardialign.data_shards.signal.codec import CODEC_VERSION, CODECS, MAX_SAMPLES
from cardialign.data_shards.signal.quality import MILLIVOLT_RANGE, OFFSET_MILLIVOLTS
from cardialign.data_shards.sources.base import Source

log = logging.getLogger(__name__)
LOOKING = 16
"""Shards of an interrupted build that are looked at side by side."""
Progress = Callable[[int, int, int], None]
"""progress(entries done, entries in all, records rejected so far); while the source is listed: progress(entries listed,
0, 0)"""


@dataclass(frozen=True)
class SetPlan:
    """What a set is to hold. Raises UsageError for a value out of range.

    spec: what every record is conformed to. codec: how payloads are packed. records_per_shard: entries read for one
    shard. folds: keep only records of these, None = all. limit: read at most so many entries, None = all.
    """

    spec: SignalSpec = field(default_factory=SignalSpec)
    codec: str = "einthoven"
    records_per_shard: int = 2048
    folds: Sequence[int] | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise UsageError(f"unknown codec {self.codec!r}", f"choose one of {', '.join(CODECS)}")
        whole_number("records_per_shard", self.records_per_shard, 1)
        if self.limit is not None:
            whole_number("limit", self.limit, 1)
        if not isinstance(self.spec, SignalSpec):
            raise UsageError(f"spec is {self.spec!r:.60}", "give a SignalSpec(sampling_rate, seconds)")
        positive_number("sampling_rate", self.spec.sampling_rate)
        positive_number("seconds", self.spec.seconds)
        if not 1 <= self.spec.sampling_rate * self.spec.seconds <= MAX_SAMPLES:
            raise UsageError(
                f"{self.spec.seconds:g} seconds at {self.spec.sampling_rate:g} Hz are {self.spec.samples:,} samples, a "
                f"record has 1 to {MAX_SAMPLES:,}",
                "give other seconds, or another sampling rate",
            )
        fold_numbers(self.folds)

    @property
    def kept_folds(self) -> tuple[int, ...] | None:
        """Each fold once, in order: equal for plans that mean the same."""
        return None if self.folds is None else tuple(sorted(set(self.folds)))


@dataclass(frozen=True)
class BuildSummary:
    """What a build made.

    `rejected`: reason -> records (or folders that could not be looked at); `quality`: flag -> records that carry it
    (`signal.quality`); `joins`: table -> how many records of how many found their row in it.

    `seconds` of this run: a resumed build counts only what it did itself.
    """

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
    joins: dict[str, str] = field(default_factory=dict)


def build_shards(
    source: Source,
    out: Path,
    plan: SetPlan | None = None,
    *,
    workers: int = 0,
    executor: BuildExecutor | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BuildSummary:
    """Build a shard set in the folder `out`.

    workers: processes, 0 = one per usable core, 1 = in this process; executor: where the tasks run instead. An
    interrupted build of the same plan goes on where it stopped; a shard whose recordings have changed since is made
    anew. Raises UsageError for settings out of range; DataError
    when `out` holds a finished set (unless `overwrite`), an unfinished build of another plan, or something else; when
    the disk is full; when no record is usable.
    """
    started = time.monotonic()
    if url_of(out) is not None:
        raise UsageError(f"{out} is no folder of this machine", "build a set in a folder and copy it to its place")
    out, plan = Path(out), plan or SetPlan()
    whole_number("workers", workers, 0)
    with claim(out, overwrite):
        slices, codec = _listed(source, out, plan, overwrite, progress)
        tasks = [ShardTask(n, part, out, plan.spec, plan.codec, plan.kept_folds) for n, part in enumerate(slices)]
        resumed = _run(source, tasks, workers, executor, progress)
        try:
            manifest = commit_set(out, len(tasks), source, plan.spec, codec)
        except OSError as error:
            raise disk_error(error, out / MANIFEST) from error
    _log_built(out, manifest)
    counts = manifest["counts"]
    return BuildSummary(
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
        joins={
            role: f"{each['matched']} of {each['of']}" for role, each in manifest["source"].get("joins", {}).items()
        },
    )


def _listed(
    source: Source, out: Path, plan: SetPlan, overwrite: bool, progress: Progress | None
) -> tuple[Sequence[Slice], dict[str, Any]]:
    """The source walked and its listing in place: the slices of the shards, and what is kept about the codec."""
    place = out / WORK_FOLDER / LISTING
    unfinished = temporary_path(place)
    listed = None if progress is None else lambda records: progress(records, 0, 0)
    try:
        listing = write_listing(
            source, unfinished, plan.records_per_shard, folds=plan.kept_folds, limit=plan.limit, progress=listed
        )
        facts = _plan_facts(source, listing, plan)
        begin(out, facts, overwrite)
        os.replace(unfinished, place)
    finally:
        unfinished.unlink(missing_ok=True)
    return listing.slices, facts["codec"]


def _finished(source: Source, task: ShardTask) -> dict[str, Any] | None:
    """The facts about a shard that is there and as its recordings are now."""
    facts = read_sidecar(task.out, task.number)
    if facts is not None and (changed := changed_since(source, task)):
        log.warning("made anew shard=%d: %s was changed after the shard was written", task.number, changed)
        return None
    return facts


def _run(
    source: Source,
    tasks: Sequence[ShardTask],
    workers: int,
    executor: BuildExecutor | None,
    progress: Progress | None,
) -> int:
    """Run the tasks that an interrupted build has not finished; returns how many it had."""
    entries = sum(task.slice.entries for task in tasks)
    counter = _ProgressCounter(progress, entries)
    remaining = []
    with ThreadPoolExecutor(LOOKING) as pool:  # a network file system answers many at once as fast as one
        found = pool.map(partial(_finished, source), tasks)
        for task, facts in zip(tasks, found, strict=True):
            if facts is None:
                remaining.append(task)
            else:
                counter.add(task.slice.entries, len(facts["rejects"]))
    resumed = len(tasks) - len(remaining)
    if executor is None:
        workers = min(workers or usable_cpus(), max(1, len(remaining)))
        executor = InThisProcess() if workers == 1 else Processes(workers)
    log.info(
        "build out=%s entries=%d shards=%d resumed=%d executor=%s",
        tasks[0].out,
        entries,
        len(tasks),
        resumed,
        executor,
    )
    for outcome in executor.run(source, remaining, counter.add):
        log.debug("shard entries=%d records=%d rejected=%d", outcome.entries, outcome.records, outcome.rejected)
    return resumed


def _log_built(out: Path, manifest: dict[str, Any]) -> None:
    counts, fingerprint = manifest["counts"], manifest["fingerprint"]
    records = counts["records"]
    log.info("built out=%s records=%d rejected=%s fingerprint=%s", out, records, counts["rejected"], fingerprint)
    suspect = counts["quality"].get("gain-suspect", 0)
    if suspect:
        log.warning(
            "gain-suspect records=%d of=%d: median amplitudes outside %g .. %g mV, check the gain of the files",
            suspect,
            records,
            *MILLIVOLT_RANGE,
        )
    far = counts["quality"].get("offset", 0)
    if far:
        log.warning(
            "offset records=%d of=%d: leads whose median lies more than %g mV from 0, check the baseline or ADC zero "
            "of the files; what comes from the electrodes (DC) is to be filtered out before",
            far,
            records,
            OFFSET_MILLIVOLTS,
        )
    slipped = counts["quality"].get("limb-leads", 0)
    if slipped:
        log.warning(
            "limb-leads records=%d of=%d: their limb leads contradict Einthoven's law as they are named, and fit it "
            "with two exchanged, or one upside down; they are kept as named, check the names of the leads in the files",
            slipped,
            records,
        )
    differing = counts["quality"].get("checksum", 0)
    if differing:
        log.warning(
            "checksum records=%d of=%d: not the numbers that the header's checksums or first values are of, check the "
            "format (byte order, lead order) and the copies of the signal files",
            differing,
            records,
        )


def _plan_facts(source: Source, listing: Listing, plan: SetPlan) -> dict[str, Any]:
    """What an unfinished build keeps about its plan, as JSON gives it back: another build goes on only when all of it
    is equal."""
    facts = {
        "source": source.describe(),
        "spec": asdict(plan.spec),
        "codec": {"name": plan.codec, "version": CODEC_VERSION, "pcodec": importlib.metadata.version("pcodec")},
        "cleaning_version": CLEANING_VERSION,
        "records_per_shard": plan.records_per_shard,
        "folds": plan.kept_folds,
        "first_record": _first_record(source, listing),
        "entries": {"number": len(listing), "sha256": listing.sha256},
    }
    return json.loads(json.dumps(facts, default=str))


def _first_record(source: Source, listing: Listing) -> str:
    """Digest of what the reader makes of the first readable record.

    The source does not tell its salt; this notices that it changed.
    """
    for entry in islice(listing, 100):
        try:
            return hashlib.sha256(metadata_bytes(metadata_of(source.read(entry)))).hexdigest()
        except DataError as error:  # the build itself will report it, and keep the shards before it
            return type(error).__name__
        except Exception:  # noqa: S112 - the build turns it away, and says so
            continue
    return ""


class _ProgressCounter:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done, self._rejected = progress, total, 0, 0

    def add(self, entries: int, rejected: int = 0) -> None:
        self._done += entries
        self._rejected += rejected
        if self._progress is not None:
            self._progress(self._done, self._total, self._rejected)
