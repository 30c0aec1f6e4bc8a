"""What an archive's size costs a build: MIMIC-IV-ECG's tables made up for any number of records, listed by the real
reader, built without signals.

Everything is the real build but the reading of signals: the tables are joined, the entries spooled, read back shard by
shard and committed as index, report table and manifest. Every measurement runs in a process of its own, whose memory is
its whole peak, interpreter and imports included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from cardialign.data_shards.benchmarks.material import Material, Measurement
from cardialign.data_shards.benchmarks.process import peak_memory
from cardialign.data_shards.benchmarks.table import Row
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.build.executors import Count
from cardialign.data_shards.build.index_rows import index_row
from cardialign.data_shards.build.listing import LISTING, read_slice
from cardialign.data_shards.build.shard_task import ShardOutcome, ShardTask, sidecar_path
from cardialign.data_shards.build.shard_writer import Member, ShardInfo
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.files import sha256_of
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.layout import LEAST_BYTES, WORK_FOLDER, shard_name
from cardialign.data_shards.sources import open_source
from cardialign.data_shards.sources.base import Source
from cardialign.data_shards.sources.mimic_tables import REPORT_COLUMNS

SIZES = (100_000, 800_000, 2_000_000)
_PART = 1 << 17
_PHRASES = 3000


def _rows() -> Iterator[Row]:
    for records in SIZES:
        yield Row(
            f"{records:,} records listed: tables joined, shards planned",
            f"listing_{records}_records_per_s_per_core",
            "records/s",
        )
        yield Row("... memory of the build at its peak, imports included", f"listing_{records}_memory_peak_mb", "MB")


def measure_large_listings(material: Material) -> Measurement:
    """The figures of `cardialign bench data --scale`; the material plays no part."""
    return Measurement(figures=measure_listings, rows=tuple(_rows()))


def measure_listing(records: int) -> dict[str, float]:
    """Entries listed per second (tables to listing and plan), seconds of the commit, and peak MB of the process, for an
    archive of `records`."""
    with tempfile.TemporaryDirectory(prefix="cardialign-bench-") as name:
        make_tables(Path(name) / "archive", records)
        words = [sys.executable, "-m", "cardialign.data_shards.benchmarks.listing", name]
        done = subprocess.run(  # noqa: S603 - this module
            words, cwd=Path(__file__).absolute().parents[3], capture_output=True, text=True
        )
        if done.returncode:
            raise DataError(
                f"the process that measures a listing of {records} records failed: "
                f"{done.stderr.strip().splitlines()[-1:]}"
            )
        return json.loads(done.stdout)


def measure_listings(sizes: Sequence[int] = SIZES) -> dict[str, float]:
    """The figures at each size."""
    figures: dict[str, float] = {}
    for records in sizes:
        figures |= {f"listing_{records}_{name}": value for name, value in measure_listing(records).items()}
    return figures


def make_tables(folder: Path, records: int, seed: int = 0) -> None:
    """record_list.csv, machine_measurements.csv and patients.csv of `records` made-up records, five per patient, three
    in eight reports distinct; measurements in another order, without a row for one record in 80."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    phrases = np.array([f"Phrase number {number} of a machine report" for number in range(_PHRASES)])

    def listed() -> Iterator[list[Any]]:
        for at in _parts(records):
            study, subject = at + 40_000_000, at // 5 + 10_000_000
            paths = [
                f"files/p{p // 10000}/p{p}/s{s}/{s}" for p, s in zip(subject.tolist(), study.tolist(), strict=True)
            ]
            yield [subject, study, study, ["2180-07-23 08:44:00"] * at.size, paths]

    def measured() -> Iterator[list[Any]]:
        for part in reversed(list(_parts(records))):
            at = rng.permutation(part[part % 80 > 0])
            report = np.where(at % 4, at % (records // 8 + 1), at)
            numbers = {
                k: (report * (2 * k + 1) + report // _PHRASES) % _PHRASES for k in (0, 1, 3, 4)
            }  # report_2 is a gap
            columns = [
                phrases[numbers[k]] if k in numbers else pa.nulls(at.size, pa.string())
                for k in range(len(REPORT_COLUMNS))
            ]
            yield [at // 5 + 10_000_000, at + 40_000_000, *columns]

    def patients() -> Iterator[list[Any]]:
        for at in _parts(records // 5 + 1):
            yield [at + 10_000_000, np.where(at % 2, "F", "M"), 20 + at % 70, np.full(at.size, 2180)]

    _write(folder / "record_list.csv", ("subject_id", "study_id", "file_name", "ecg_time", "path"), listed())
    _write(folder / "machine_measurements.csv", ("subject_id", "study_id", *REPORT_COLUMNS), measured())
    _write(folder / "patients.csv", ("subject_id", "gender", "anchor_age", "anchor_year"), patients())


def _parts(number: int) -> Iterator[np.ndarray]:
    return (np.arange(start, min(start + _PART, number)) for start in range(0, number, _PART))


def _write(path: Path, names: Sequence[str], parts: Iterator[list[Any]]) -> None:
    tables = (pa.table([pa.array(column) for column in columns], names=list(names)) for columns in parts)
    first = next(tables)
    with pa_csv.CSVWriter(path, first.schema) as writer:
        for table in chain((first,), tables):
            writer.write(table)


class WithoutSignals:
    """An executor that takes every entry for a record of one short signal, whose payload it does not make: slices
    become sidecars, shards files that are one hole, of the size that so many records have at the least."""

    def __init__(self) -> None:
        self.started = 0.0
        self._digests: dict[int, str] = {}

    def run(self, source: Source, tasks: Sequence[ShardTask], count: Count) -> Iterator[ShardOutcome]:
        self.started = time.process_time()
        counts, gain = np.ones((12, 10), dtype=np.int16), np.full(12, 200, dtype=np.float32)
        half = LEAST_BYTES // 2
        for task in tasks:
            entries = read_slice(task.out / WORK_FOLDER / LISTING, task.slice)
            rows = []
            for place, entry in enumerate(entries):
                meta = entry.meta
                record = EcgRecord(
                    entry.key,
                    counts,
                    gain,
                    500.0,
                    statements=meta["statements"],
                    patient=meta["patient"],
                    sex=meta["sex"],
                )
                rows.append(index_row(record, Member(at := place * LEAST_BYTES, half, place, at + half, half)))
            name = shard_name(task.number)
            shard = asdict(ShardInfo(name, len(rows), *self._hole(task.out / name, len(rows))))
            sidecar = json.dumps({"shard": shard, "rows": rows, "rejects": []}, ensure_ascii=False).encode()
            sidecar_path(task.out, task.number).write_bytes(sidecar)
            count(len(rows), 0)
            yield ShardOutcome(len(rows), len(rows), 0)
        self.ended = time.process_time()

    def _hole(self, path: Path, records: int) -> tuple[int, str]:
        """Bytes and sha256 of the file that is made."""
        size = records * LEAST_BYTES
        with path.open("wb") as file:
            file.truncate(size)
        if size not in self._digests:
            self._digests[size] = sha256_of(path)
        return size, self._digests[size]


def build_without_signals(archive: Path, out: Path) -> dict[str, float]:
    """The figures, of this process."""
    before = peak_memory()
    started, executor = time.process_time(), WithoutSignals()
    report = build_shards(open_source("mimic-iv-ecg", archive), out, SetPlan(SignalSpec(500, 1)), executor=executor)
    return {
        "records_per_s_per_core": report.records / (executor.started - started),
        "commit_cpu_s": time.process_time() - executor.ended,
        "distinct_reports": report.reports,
        "memory_before_mb": before / 1e6,
        "memory_peak_mb": peak_memory() / 1e6,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(build_without_signals(Path(sys.argv[1]) / "archive", Path(sys.argv[1]) / "set")) + "\n")
