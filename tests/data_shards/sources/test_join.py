"""A join through numbers finds what a dictionary of the texts finds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardialign.data_shards.sources.shared import join
from cardialign.data_shards.sources.shared.join import IdRows, TextRows, id_numbers, stretches

SPELLINGS = {"7": ("7", "7.0", " 7", "+7", "'7'", "7.", "7.000e0"), "007": ("007", "007.0"), "": ("", " ", "nan")}
SPELLINGS |= {each: (each,) for each in ("-0", "a", "A", "\u00fc", "\u0667", "7x", str(10**18), str(2**63), "9" * 30)}
MEANT = {text: meaning for meaning, texts in SPELLINGS.items() for text in texts}
"""Written -> meant; "" is no id."""
ids = st.integers(-5, 40).map(str) | st.sampled_from(sorted(MEANT))


@settings(deadline=None)
@given(st.lists(ids, max_size=20), st.lists(ids, max_size=20))
def test_rows_are_found_by_what_their_id_means_whatever_stands_beside_it(listed: list[str], wanted: list[str]) -> None:
    rows = IdRows([id_numbers(pa.array(part, pa.string())) for part in (listed[:7], listed[7:])])
    first: dict[str, int] = {}
    meant = [MEANT.get(name, name) for name in listed]
    for row, name in enumerate(meant):
        if name:
            first.setdefault(name, row)
    found = [first.get(MEANT.get(name, name), -1) for name in wanted]
    assert rows.find(id_numbers(pa.array(wanted, pa.string()))).tolist() == found
    named = [name for name in meant if name]
    assert (rows.distinct, rows.repeated) == (len(first), len(named) - len(first))
    starts, times = rows.runs()
    assert {meant[row]: number for row, number in zip(starts.tolist(), times.tolist(), strict=True)} == {
        n: named.count(n) for n in first
    }
    assert sorted(starts.tolist()) == sorted(first.values())
    again, firsts = rows.pairs()
    assert sorted(zip(again.tolist(), firsts.tolist(), strict=True)) == [
        (row, first[name]) for row, name in enumerate(meant) if name and first[name] != row
    ]


def test_a_missing_id_finds_nothing_not_even_another_missing_one() -> None:
    rows = IdRows([id_numbers(pa.array([None, "7", "NaN"], pa.string()))])
    assert rows.find(id_numbers(pa.array([None, "", "7"], pa.string()))).tolist() == [-1, -1, 1]


def test_rows_of_one_id_that_say_different_things_are_named() -> None:
    table = [{"id": "1", "x": "a"}, {"id": "1.0", "x": "a"}, {"id": "2", "x": "a"}, {"id": " 2", "x": "b"}]
    assert TextRows(table, ("id", "x"), "id").contradicting() == ["2"]


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
