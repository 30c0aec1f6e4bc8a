"""How often test records were scored: each opening counts once, whatever became of the lines before."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation import openings
from cardialign.pretrain.evaluation.openings import FILE, ScoredPart, open_test


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScoredPart:
    monkeypatch.setattr(openings, "places_beside", lambda shard_set: [tmp_path])
    return ScoredPart("task", cast(ShardSet, SimpleNamespace(fingerprint="f" * 64)), np.arange(3))


def times(part: ScoredPart, run: str = "run") -> Any:
    return open_test(part, run, "evaluate")["times"]


def test_openings_are_counted_for_a_run_and_its_records(part: ScoredPart) -> None:
    other = ScoredPart("task", part.shard_set, np.arange(4))
    assert [times(part), times(part), times(part, "another"), times(other), times(part)] == [1, 2, 1, 1, 3]


def test_a_line_that_a_full_disk_cut_off_costs_no_other(part: ScoredPart, tmp_path: Path) -> None:
    assert [times(part), times(part)] == [1, 2]
    with (tmp_path / FILE).open("a") as file:
        file.write('{"part": "0123')
    assert [times(part), times(part)] == [3, 4]


def test_an_opening_that_cannot_be_written_whole_is_not_counted_and_takes_none_away(
    part: ScoredPart, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [times(part), times(part)] == [1, 2]
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:20]))
        told = open_test(part, "run", "evaluate")
    assert told["times"] is None and len(told["earlier"]) == 2
    assert times(part) == 3
