"""Figures of the data path, measured on the same records in one run, with the common alternatives beside them as ratios.

Rates are medians over interleaved rounds, so that a machine that slows down slows everything in the round. CPU seconds of this process and its
threads are used rather than wall-clock, so that other work on the machine disturbs less; "per core" means per CPU second.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_shards.benchmark_build import measure_build
from data_shards.benchmark_codec import measure_codec
from data_shards.benchmark_listing import measure_large_listings
from data_shards.benchmark_material import Job, Material, Measurement, records_of_set, records_of_wfdb, virtual_wfdb
from data_shards.benchmark_order import measure_scale
from data_shards.benchmark_others import measure_others
from data_shards.benchmark_start import measure_start
from data_shards.benchmark_stream import measure_stream
from data_shards.errors import DataError
from data_shards.shard_set import ShardSet

OURS: tuple[Callable[[Material], Measurement], ...] = (measure_codec, measure_build, measure_stream, measure_start)
"""A new figure is one module with one such function, and one name here."""
OTHERS: tuple[Callable[[Material], Measurement], ...] = (measure_others,)


def measure_ten_million(material: Material) -> Measurement:
    """Order and memory on made-up indexes of 800,000 and 10 million records; the material plays no part."""
    return Measurement(figures=measure_scale)


SCALE: tuple[Callable[[Material], Measurement], ...] = (measure_ten_million, measure_large_listings)


def measure_data(
    shard_set: ShardSet | None = None,
    *,
    wfdb_folder: Path | None = None,
    records: int = 256,
    rounds: int = 5,
    batch: int = 32,
    compare: bool = True,
    seed: int = 0,
    index_records: int = 800_000,
    scale: bool = False,
) -> dict[str, Any]:
    """Records per second per core of every job, compression, start and memory, and how many times faster the stream is than the alternatives.

    Measures a shard set, or a folder of WFDB headers with signals (searched recursively), or, when neither is given, a virtual cohort made for the
    purpose. compare: also `wfdb.rdsamp`, one float32 `.mat` per record and stock `webdataset`, on copies of the same records. index_records: size of
    the index for start and memory. scale: also the order of up to 10 million records and the listing of up to 2 million (minutes). Everything is written to a temporary folder. Raises DataError when there is no record to measure, or when the
    records differ in length.
    """
    with tempfile.TemporaryDirectory(prefix="cardialign-bench-") as name:
        folder = Path(name)
        if shard_set is not None:
            chosen = records_of_set(shard_set, records, seed)
        else:
            root = wfdb_folder if wfdb_folder is not None else virtual_wfdb(folder / "cohort", records, seed)
            chosen = records_of_wfdb(root, records, seed)
        if len({record.samples for record in chosen}) != 1:
            raise DataError("the records to measure differ in length", "measure a shard set, whose records all conform to one spec")
        material = Material(folder, chosen, shard_set, batch, seed, index_records)
        ours = [measure(material) for measure in (*OURS, *(SCALE if scale else ()))]
        others = [measure(material) for measure in OTHERS] if compare else []
        rates = _interleaved({name: job for each in (*ours, *others) for name, job in each.jobs.items()}, rounds)
        figures: dict[str, Any] = {"records": len(chosen), "samples": chosen[0].samples, "rounds": rounds}
        for each in (*ours, *others):
            figures |= each.figures()
    figures |= {f"{name}_records_per_s_per_core": rate for name, rate in rates.items()}
    figures |= {f"stream_times_{name}": rates["stream"] / rates[name] for each in others for name in each.jobs}
    return figures


def _interleaved(jobs: Mapping[str, Job], rounds: int) -> dict[str, float]:
    """Median records per CPU second of every job; one uncounted round warms caches and imports."""
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            started = time.process_time()
            done = job()
            if number:
                rates[name].append(done / max(time.process_time() - started, 1e-9))
    return {name: statistics.median(values) for name, values in rates.items()}
