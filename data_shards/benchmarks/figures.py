"""Figures of the data path, measured on the same records in one run, with the common alternatives beside them as
ratios.

Rates are medians over interleaved rounds, so that a machine that slows down slows everything in the round. CPU seconds
of this process and its threads are used rather than wall-clock, so that other work on the machine disturbs less; "per
core" means per CPU second.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cardialign.data_shards.benchmarks.baselines import measure_others
from cardialign.data_shards.benchmarks.build import measure_build, minutes_of_mimic_iv_ecg
from cardialign.data_shards.benchmarks.codec import measure_codec
from cardialign.data_shards.benchmarks.distant import measure_distant
from cardialign.data_shards.benchmarks.listing import measure_large_listings
from cardialign.data_shards.benchmarks.material import (
    Job,
    Material,
    Measurement,
    Phrases,
    Sizes,
    rate,
    records_of_set,
    records_of_wfdb,
    virtual_wfdb,
)
from cardialign.data_shards.benchmarks.opening import measure_start
from cardialign.data_shards.benchmarks.order import measure_ten_million
from cardialign.data_shards.benchmarks.stream import measure_stream
from cardialign.data_shards.benchmarks.table import measured_rows
from cardialign.data_shards.benchmarks.text import measure_similarity
from cardialign.data_shards.benchmarks.wait import measure_wait
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.shard_set.shard_set import ShardSet

Measure = Callable[[Material], Measurement]
OURS: tuple[Measure, ...] = (
    measure_codec,
    measure_build,
    measure_stream,
    measure_wait,
    measure_start,
    measure_similarity,
    measure_distant,
)
"""A new figure is one module with one such function, which also says its rows of the table, and one name here, or in
SCALE if it takes minutes."""
SCALE: tuple[Measure, ...] = (measure_ten_million, measure_large_listings)
OTHERS: tuple[Measure, ...] = (measure_others,)


def measure_data(
    given: ShardSet | Path | None = None,
    *,
    records: int = 256,
    rounds: int = 5,
    compare: bool = True,
    seed: int = 0,
    sizes: Sizes | None = None,
    phrases: Phrases | None = None,
    measures: Sequence[Measure] = OURS,
) -> dict[str, Any]:
    """Every figure of the data path by name, and under "table" those that stand in the README, each with its target and
    its baselines.

    given: a shard set, or a folder of WFDB headers with signals (searched recursively); None = a virtual cohort made
    for the purpose. records: so many of them, drawn from `seed`. compare: also `wfdb.rdsamp`, one float32 `.mat` per
    record, stock `webdataset` and the like, on copies of the same records. phrases: for the similarity of reports; by
    default those of the virtual cohorts, as word counts. measures: of OURS and, for minutes more, of SCALE; the
    stream's baselines come with it. Everything is written to a temporary folder.

    Raises DataError when there is no record to measure, or when the records differ in length.
    """
    with tempfile.TemporaryDirectory(prefix="cardialign-bench-") as name:
        folder = Path(name)
        shard_set = given if isinstance(given, ShardSet) else None
        if shard_set is not None:
            chosen = records_of_set(shard_set, records, seed)
        else:
            root = given if isinstance(given, Path) else virtual_wfdb(folder / "cohort", records, seed)
            chosen = records_of_wfdb(root, records, seed)
        if len({record.samples for record in chosen}) != 1:
            raise DataError(
                "the records to measure differ in length", "measure a shard set, whose records all conform to one spec"
            )
        phrases = phrases or Phrases()
        material = Material(folder, chosen, shard_set, seed, sizes or Sizes(), phrases, compare=compare)
        ours = [measure(material) for measure in measures]
        others = [measure(material) for measure in OTHERS] if compare and measure_stream in measures else []
        rates = _interleaved({name: job for each in (*ours, *others) for name, job in each.jobs.items()}, rounds)
        figures: dict[str, Any] = {"records": len(chosen), "samples": chosen[0].samples, "rounds": rounds}
        figures |= {
            "given_records": given is not None,
            "text_encoder": phrases.encoder_name,
        }
        for each in (*ours, *others):
            figures |= each.figures()
    figures |= {rate(name): value for name, value in rates.items()}
    figures |= {f"stream_times_{name}": rates["stream"] / rates[name] for each in others for name in each.jobs}
    if "build" in rates:
        figures |= minutes_of_mimic_iv_ecg(rates["build"])
    figures["table"] = measured_rows([row for each in ours for row in each.rows], figures, figures["given_records"])
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
