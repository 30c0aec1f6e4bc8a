"""What is timed is a probe that learns: planted labels are found, rare classes too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cardialign.pretrain.benchmarks.probe import made_up


def test_every_class_is_as_frequent_as_asked() -> None:
    _, truth, parts = made_up(1000, 20, 4)
    assert abs(truth.sum(axis=0) - [400, 117, 34, 10]).max() <= 1, "from 40 to 1 %, evenly in ratio"
    assert [len(each) for each in (parts.train, parts.validation, parts.test)] == [800, 100, 100]


def test_seconds_stand_with_what_was_fitted(cardialign: Callable[..., Any]) -> None:
    answer = cardialign("bench", "probe", "--records", 400, "--width", 30, "--classes", 2, "--shares", "25,100")
    assert answer.code == 0, answer.err
    rows = answer.json["rows"]
    assert [(row["read_by"], row["records"]) for row in rows] == [
        (name, count) for name in ("linear probe", "nearest neighbours") for count in (80, 320)
    ]
    assert all(row["seconds"] > 0 for row in rows) and rows[1]["validation"] > 0.7, "there is something to find"
