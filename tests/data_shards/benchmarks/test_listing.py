"""The measurement of a large listing builds the real thing, and memory grows by a few numbers per record, not by its
entry."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from cardialign.data_shards.benchmarks.listing import (
    WithoutSignals,
    build_without_signals,
    make_tables,
    measure_listing,
)
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from tests.support.small_source import SmallSource


def test_the_made_up_archive_is_listed_joined_and_committed_by_the_real_build(tmp_path: Path) -> None:
    make_tables(tmp_path / "archive", 2400)
    figures = build_without_signals(tmp_path / "archive", tmp_path / "set")
    shards = ShardSet.open(tmp_path / "set")
    assert len(shards) == 2400 and shards.manifest["counts"]["patients"] == 480 and len(shards.shard_names) == 2
    assert figures["distinct_reports"] == len(shards.reports) > 600 and (shards.report < 0).sum() == 30
    assert sum(count for count in shards.reports.column("count").to_pylist()) == 2370


@pytest.mark.slow
def test_figures_of_a_listing_come_from_a_process_of_its_own() -> None:
    figures = measure_listing(1000)
    assert (
        figures["records_per_s_per_core"] > 0 < figures["commit_cpu_s"]
        and 0 < figures["memory_before_mb"] < figures["memory_peak_mb"]
    )
    json.dumps(figures)


class Large(SmallSource):
    """Entries of the size that real ones have, all different, made when they are asked for."""

    def entries(self) -> Iterator[Entry]:
        for number in range(self.records):
            statements = (f"Statement {number} of many", f"And another {number}", "Sinus rhythm")
            yield Entry(
                f"large-{number}",
                f"files/{number}",
                {"patient": f"patient {number}", "statements": statements, "sex": None},
            )


@pytest.mark.slow
def test_memory_of_a_build_grows_by_less_than_a_tenth_of_its_entries(tmp_path: Path) -> None:
    def peak(records: int) -> int:
        tracemalloc.start()
        build_shards(
            Large(records),
            tmp_path / str(records),
            SetPlan(SignalSpec(500, 1), records_per_shard=250),
            executor=WithoutSignals(),
        )
        made = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return made

    peak(250)  # imports
    grown = (peak(3000) - peak(1000)) / 2000
    tracemalloc.start()
    entries = list(Large(1000).entries())
    held = tracemalloc.get_traced_memory()[0] / len(entries)
    tracemalloc.stop()
    assert grown < 0.1 * held, f"{grown:.0f} bytes per record, an entry takes {held:.0f}"
