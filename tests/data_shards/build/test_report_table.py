"""The report table made by numbers and through a file is the one that plain dictionaries give."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardialign.data_shards.build import report_table
from cardialign.data_shards.build.report_table import REPORT_SCHEMA, FirstSeen, ReportTable
from cardialign.data_shards.report_text import join_statements, report_key


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=30), max_size=12))
def test_digests_are_numbered_by_first_appearance(batches: list[list[int]]) -> None:
    numbering, plain = FirstSeen(), {}
    for batch in batches:
        wanted = [plain.setdefault(digest, len(plain)) for digest in batch]
        assert numbering.add(np.array(batch, dtype=np.uint64)).tolist() == wanted
    assert len(numbering) == len(plain)


def test_a_long_numbering_stays_in_few_runs() -> None:
    numbering = FirstSeen()
    digests = np.random.default_rng(0).permutation(20_000).astype(np.uint64)
    for part in np.split(digests, 200):
        numbering.add(part)
    np.testing.assert_array_equal(numbering.add(digests), np.arange(20_000))
    sizes = [known.size for known, _ in numbering._runs]
    assert sum(sizes) == 20_000 and len(sizes) <= 15


@pytest.mark.parametrize("row_group", [3, 16, 1 << 16])
def test_the_table_is_the_one_of_plain_dictionaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_group: int
) -> None:
    monkeypatch.setattr(report_table, "ROW_GROUP", row_group)
    rng = np.random.default_rng(1)
    batches = [
        [tuple(f"Phrase {word}" for word in rng.integers(0, 6, rng.integers(0, 3))) for _ in range(20)]
        for _ in range(9)
    ]
    batches[3][4] = ("PHRASE 1",)
    order: dict[str, tuple[str, ...]] = {}
    counts: Counter[str] = Counter()
    with ReportTable(tmp_path / "texts") as table:
        for batch in batches:
            for report in batch:
                if report:
                    order.setdefault(report_key(report), report)
                    counts[report_key(report)] += 1
            places = list(order)
            assert table.add(batch).tolist() == [places.index(report_key(report)) if report else -1 for report in batch]
        table.write(tmp_path / "reports.parquet")
    assert not (tmp_path / "texts").exists() and len(table) == len(order) > 16
    file = pq.ParquetFile(tmp_path / "reports.parquet")
    assert file.schema_arrow.equals(REPORT_SCHEMA) and file.metadata.num_row_groups == -(-len(order) // row_group)
    assert file.read().to_pylist() == [
        {"report": row, "key": key, "statements": list(report), "text": join_statements(report), "count": counts[key]}
        for row, (key, report) in enumerate(order.items())
    ]


def test_a_set_without_reports_has_an_empty_table(tmp_path: Path) -> None:
    with ReportTable(tmp_path / "texts") as table:
        assert table.add([(), ()]).tolist() == [-1, -1]
        table.write(tmp_path / "reports.parquet")
    assert pq.read_table(tmp_path / "reports.parquet").num_rows == 0
