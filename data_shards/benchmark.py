"""Speeds of the data path, measured on the same records in one run, with the common alternatives beside them as ratios.

Figures are medians over interleaved rounds, so that a machine that slows down slows everything in the round. CPU seconds of this process and its
threads are used rather than wall-clock, so that other work on the machine disturbs less; "per core" means per CPU second.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.build import build_shards
from data_shards.codec import decode_into, encode
from data_shards.errors import DataError
from data_shards.order import GlobalOrder
from data_shards.record import STANDARD_LEADS, EcgRecord, SignalSpec
from data_shards.shard_set import ShardSet
from data_shards.sources.base import Entry, RecordRejected
from data_shards.stream import ShardStream
from data_shards.wfdb_reader import read_wfdb, standard_leads


def measure_data(
    shard_set: ShardSet | None = None,
    *,
    wfdb_folder: Path | None = None,
    records: int = 256,
    rounds: int = 5,
    batch: int = 32,
    compare: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Records per second per core of encoding, decoding and streaming, the compression ratio, and how many times faster than the alternatives.

    Measures a shard set, or a folder of WFDB headers with signals (searched recursively), or, when neither is given, a virtual cohort made for the
    purpose. `compare`: also `wfdb.rdsamp` on a WFDB copy of the same records, and stock `webdataset` on a tar of them as plain float32 `.npy`.
    Everything is written to a temporary folder. Raises DataError when there is no record to measure, or when the records differ in length.
    """
    with tempfile.TemporaryDirectory(prefix="cardialign-bench-") as name:
        folder = Path(name)
        if shard_set is not None:
            chosen = _from_set(shard_set, records, seed)
        else:
            chosen = _from_wfdb(wfdb_folder if wfdb_folder is not None else _virtual_wfdb(folder / "cohort", records, seed), records, seed)
        if len({record.samples for record in chosen}) != 1:
            raise DataError("the records to measure differ in length", "measure a shard set, whose records all conform to one spec")
        payloads = [encode(record) for record in chosen]
        jobs: dict[str, Callable[[], int]] = {
            "encode": lambda: sum(bool(encode(record)) for record in chosen),
            "decode": lambda: _decode_all(payloads, chosen[0].samples),
            "stream": _stream_job(_write_set(folder / "shards", chosen) if shard_set is None else shard_set, len(chosen), batch, seed),
        }
        if compare:
            jobs["wfdb_rdsamp"] = _rdsamp_job(folder / "wfdb", chosen)
            jobs["webdataset_npy"] = _webdataset_job(folder / "npy.tar", chosen)
        rates = _interleaved(jobs, rounds)
    figures: dict[str, Any] = {
        "records": len(chosen),
        "samples": chosen[0].samples,
        "rounds": rounds,
        "compression_ratio": sum(record.counts.nbytes for record in chosen) / sum(map(len, payloads)),
        "bytes_per_record": sum(map(len, payloads)) / len(payloads),
    }
    figures |= {f"{name}_records_per_s_per_core": rate for name, rate in rates.items()}
    figures |= {f"stream_times_{name}": rates["stream"] / rates[name] for name in ("wfdb_rdsamp", "webdataset_npy") if name in rates}
    return figures


def _interleaved(jobs: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Median records per CPU second of every job; one uncounted round warms caches and imports."""
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            started = time.process_time()
            done = job()
            if number:
                rates[name].append(done / max(time.process_time() - started, 1e-9))
    return {name: statistics.median(values) for name, values in rates.items()}


def _from_set(shards: ShardSet, records: int, seed: int) -> list[EcgRecord]:
    rows = np.sort(np.random.default_rng(seed).permutation(len(shards))[:records])
    return [shards.read_record(int(row)) for row in rows]


def _virtual_wfdb(folder: Path, records: int, seed: int) -> Path:
    from data_shards.cohort.generate import make_cohort

    make_cohort(folder, patients=max(1, records // 2), records=max(1, records), seed=seed)
    return folder


def _from_wfdb(folder: Path, records: int, seed: int) -> list[EcgRecord]:
    headers = sorted(Path(folder).rglob("*.hea"))
    found: list[EcgRecord] = []
    for position in np.random.default_rng(seed).permutation(len(headers)):
        path = headers[int(position)].with_suffix("")
        with contextlib.suppress(RecordRejected):
            signal = read_wfdb(path)
            leads = standard_leads(signal, str(path))
            found.append(EcgRecord(path.name, leads.counts, leads.gain, signal.sampling_rate, lead_mask=leads.lead_mask))
        if len(found) == records:
            break
    if not found:
        raise DataError(f"no WFDB record to measure under {folder}", "give a shard set or a folder with WFDB records")
    return found


def _decode_all(payloads: Sequence[bytes], samples: int) -> int:
    out = np.empty((12, samples), dtype=np.float32)
    for payload in payloads:
        decode_into(payload, out)
    return len(payloads)


class _MemorySource:
    """Records that are already in memory, as a source, so that the set to stream is made by the real build."""

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


def _write_set(folder: Path, records: Sequence[EcgRecord]) -> ShardSet:
    spec = SignalSpec(records[0].sampling_rate, records[0].samples / records[0].sampling_rate)
    build_shards(_MemorySource(records), folder, spec=spec, workers=1)
    return ShardSet.open(folder)


def _stream_job(shards: ShardSet, records: int, batch: int, seed: int) -> Callable[[], int]:
    batch = min(batch, len(shards))
    order = GlobalOrder(np.arange(len(shards)), shards.patients, batch, seed, shards.fingerprint)
    order.epoch(0)  # once per epoch, and none of the stream's business
    steps = max(1, 4 * records // batch)  # long enough that starting and ending threads does not count

    def stream() -> int:
        with ShardStream(shards, order, stop_step=steps, threads=1) as batches:
            return sum(each.rows.size for each in batches)

    return stream


def _rdsamp_job(folder: Path, records: Sequence[EcgRecord]) -> Callable[[], int]:
    import wfdb

    folder.mkdir()
    names = [f"r{i:06d}" for i in range(len(records))]
    for name, record in zip(names, records, strict=True):
        wfdb.wrsamp(
            name,
            fs=record.sampling_rate,
            units=["mV"] * 12,
            sig_name=list(STANDARD_LEADS),
            d_signal=record.counts.T.astype(np.int64),
            fmt=["16"] * 12,
            adc_gain=[float(gain) for gain in record.gain],
            baseline=[0] * 12,
            write_dir=str(folder),
        )

    def read() -> int:
        return sum(np.ascontiguousarray(wfdb.rdsamp(str(folder / name))[0].T, dtype=np.float32).shape[0] == 12 for name in names)

    return read


def _webdataset_job(path: Path, records: Sequence[EcgRecord]) -> Callable[[], int]:
    """What most pipelines do: float32 `.npy` members, read and decoded by the stock loader."""
    import webdataset

    with tarfile.open(path, "w") as tar:
        for i, record in enumerate(records):
            buffer = io.BytesIO()
            np.save(buffer, record.millivolts())
            info = tarfile.TarInfo(f"record-{i:06d}.npy")
            info.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(info, buffer)
    return lambda: sum(1 for _ in webdataset.WebDataset(str(path), shardshuffle=False).decode())
