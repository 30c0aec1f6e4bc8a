"""A join through numbers finds what a dictionary of the texts finds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardialign.data_shards.sources.shared import join
from cardialign.data_shards.sources.shared.join import IdRows, TextRows, id_numbers, stretches

ids = st.integers(-5, 40).map(str) | st.sampled_from(
    [
        "",
        "007",
        "7",
        "7.0",
        " 7",
        "+7",
        "-0",
        "a",
        "A",
        "ü",
        "٧",
        str(10**18),
        str(10**18 - 1),
        str(2**63 - 1),
        str(2**63),
        "9" * 30,
    ]
)


@settings(deadline=None)
@given(st.lists(ids, max_size=20), st.lists(ids, max_size=20))
def test_rows_are_found_as_by_the_text_whatever_stands_beside_it(listed: list[str], wanted: list[str]) -> None:
    rows = IdRows([id_numbers(pa.array(part, pa.string())) for part in (listed[:7], listed[7:])])
    first: dict[str, int] = {}
    for row, name in enumerate(listed):
        first.setdefault(name, row)
    assert rows.find(id_numbers(pa.array(wanted, pa.string()))).tolist() == [first.get(name, -1) for name in wanted]
    assert rows.repeated == len(listed) - len(first)
    starts, times = rows.runs()
    assert {listed[row]: number for row, number in zip(starts.tolist(), times.tolist(), strict=True)} == {
        n: listed.count(n) for n in first
    }
    assert sorted(starts.tolist()) == sorted(first.values())


def test_a_missing_id_is_an_empty_one() -> None:
    assert (
        id_numbers(pa.array([None, "7"], pa.string())).tolist() == id_numbers(pa.array(["", "7"], pa.string())).tolist()
    )


@pytest.mark.parametrize("size", [2, 1000])
def test_rows_of_text_come_back_whole(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(join.stretches, "__defaults__", (size,))
    table = [{"id": f"r{number % 7}", "report": f"text {number}", "note": ""} for number in range(9)]
    rows = TextRows(iter(table), ("id", "report", "note"), "id")
    found = rows.find(["r1", "nobody", "r6"])
    assert found.tolist() == [1, -1, 6] and rows.take(found) == [table[1], None, table[6]] and len(rows) == 9
    assert len(TextRows([], ("id",), "id")) == 0 and TextRows([], ("id",), "id").find(["r1"]).tolist() == [-1]


def test_stretches_hold_every_value_once() -> None:
    assert list(stretches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]] and list(stretches([], 3)) == []
    assert np.concatenate(list(stretches(range(2500)))).tolist() == list(range(2500))
