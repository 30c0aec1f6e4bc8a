"""What every measuring function works on: the same records in memory, as a shard set and as WFDB files, in a temporary
folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cardialign.data_shards.benchmarks.table import Row
from cardialign.data_shards.benchmarks.word_counts import WordCounts
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import DataError, RecordRejected
from cardialign.data_shards.reading.wfdb.reader import read_wfdb, standard_leads
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry

Job = Callable[[], int]
"""Does its work once and returns the number of records it handled."""


@dataclass(frozen=True)
class Measurement:
    """What one measuring function offers: `jobs` are timed side by side in interleaved rounds and become
    `<name>_records_per_s_per_core`; `figures` is asked once, after them; `rows` are its lines of the table, which name
    either kind."""

    jobs: Mapping[str, Job] = field(default_factory=dict)
    figures: Callable[[], dict[str, Any]] = dict
    rows: tuple[Row, ...] = ()


def rate(job: str) -> str:
    """Name of the figure that a job becomes."""
    return f"{job}_records_per_s_per_core"


class Embedder(Protocol):
    """What turns phrases into vectors: the text encoder of a recipe, or `WordCounts`."""

    def embed(self, texts: list[str]) -> np.ndarray:
        """float32 (n, d), unit rows."""
        ...


@dataclass(frozen=True)
class Phrases:
    """What made-up reports are made of: phrases, one per line of `file` (None: those of the virtual cohorts), and what
    embeds them, with its name."""

    file: Path | None = None
    encoder: Embedder = field(default_factory=WordCounts)
    encoder_name: str = WordCounts.name


@dataclass(frozen=True)
class Sizes:
    """batch: records per batch when streaming. index_records: size of the index for start and memory. reports: for the
    spread of similarities and for their axes. distant_reports: size of the table of the most distant reports."""

    batch: int = 32
    index_records: int = 800_000
    reports: int = 20_000
    distant_reports: int = 180_000


class Material:
    """`records` of one length; everything else is made on first use below `folder`. compare: baselines are wanted
    too."""

    def __init__(
        self,
        folder: Path,
        records: Sequence[EcgRecord],
        shards: ShardSet | None,
        seed: int,
        sizes: Sizes,
        phrases: Phrases,
        *,
        compare: bool = True,
    ) -> None:
        self.folder, self.records, self.seed, self.sizes = folder, records, seed, sizes
        self.phrases, self.compare = phrases, compare
        self._given = shards
        self.batch = min(sizes.batch, len(shards) if shards is not None else len(records))

    @property
    def spec(self) -> SignalSpec:
        first = self.records[0]
        return SignalSpec(first.sampling_rate, first.samples / first.sampling_rate)

    @cached_property
    def shards(self) -> ShardSet:
        """The set that was given, or one that the real build makes of the records."""
        if self._given is not None:
            return self._given
        build_shards(_MemorySource(self.records), self.folder / "shards", SetPlan(self.spec), workers=1)
        return ShardSet.open(self.folder / "shards")

    @cached_property
    def wfdb_paths(self) -> list[Path]:
        """The records as WFDB files of format 16, written by the `wfdb` package; without suffix."""
        import wfdb

        folder = self.folder / "wfdb"
        folder.mkdir()
        paths = [folder / f"r{i:06d}" for i in range(len(self.records))]
        for path, record in zip(paths, self.records, strict=True):
            wfdb.wrsamp(
                path.name,
                fs=record.sampling_rate,
                units=["mV"] * 12,
                sig_name=list(STANDARD_LEADS),
                d_signal=record.counts.T.astype(np.int64),
                fmt=["16"] * 12,
                adc_gain=[float(gain) for gain in record.gain],
                baseline=[0] * 12,
                write_dir=str(folder),
            )
        return paths


def records_of_set(shards: ShardSet, records: int, seed: int) -> list[EcgRecord]:
    rows = np.sort(np.random.default_rng(seed).permutation(len(shards))[:records])
    return [shards.read_record(int(row)) for row in rows]


def records_of_wfdb(folder: Path, records: int, seed: int) -> list[EcgRecord]:
    """Records of the WFDB headers below `folder`. Raises DataError when there is none."""
    headers = sorted(Path(folder).rglob("*.hea"))
    found: list[EcgRecord] = []
    for position in np.random.default_rng(seed).permutation(len(headers)):
        path = headers[int(position)].with_suffix("")
        with contextlib.suppress(RecordRejected):
            signal = read_wfdb(path)
            leads = standard_leads(signal, str(path))
            found.append(
                EcgRecord(path.name, leads.counts, leads.gain, signal.sampling_rate, lead_mask=leads.lead_mask)
            )
        if len(found) == records:
            break
    if not found:
        raise DataError(f"no WFDB record to measure under {folder}", "give a shard set or a folder with WFDB records")
    return found


def virtual_wfdb(folder: Path, records: int, seed: int) -> Path:
    from cardialign.data_shards.cohort.generate import Cohort, make_cohort

    make_cohort(folder, Cohort(patients=max(1, records // 2), records=max(1, records), seed=seed))
    return folder


class _MemorySource:
    """Records that are already in memory, as a source."""

    name = "memory"
    root = Path(".")
    label_sets: tuple[str, ...] = ()

    def __init__(self, records: Sequence[EcgRecord]) -> None:
        self._records = records
        self._entries = [Entry(f"record-{i:06d}", str(i), {}) for i in range(len(records))]

    @classmethod
    def options(cls) -> dict[str, str]:
        return {}

    def entries(self) -> list[Entry]:
        return self._entries

    def read(self, entry: Entry) -> EcgRecord:
        record = self._records[int(entry.path)]
        return EcgRecord(entry.key, record.counts, record.gain, record.sampling_rate, lead_mask=record.lead_mask)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}
