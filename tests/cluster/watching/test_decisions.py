"""Decisions about a run are lines that are read as they were written, whatever else stands in their file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cardialign.cluster.watching.decisions import Decision, decision_of, read_decisions
from cardialign.pretrain.run.files import DECISIONS

SHRUNK = Decision("resize", "node b is gone", 2, 1, 1, failures=0, of=3, step=22, time=5.0)
ENDED = Decision("stop", "rank 0: killed", 1, 0, 2, failures=4, of=3, step=30, time=9.0)


def test_what_is_written_is_read_and_odd_lines_are_left_out(tmp_path: Path) -> None:
    assert read_decisions(tmp_path) == []
    lines = [
        json.dumps(SHRUNK.to_dict()),
        "\x00torn",
        "[1]",
        '{"kind": "explode"}',
        json.dumps(ENDED.to_dict()),
        '{"ki',
    ]
    (tmp_path / DECISIONS).write_text("\n".join(lines))
    assert read_decisions(tmp_path) == [SHRUNK, ENDED]


def test_a_line_says_kind_numbers_cause_and_count() -> None:
    assert SHRUNK.told() == "resize workers=2->1 step=22 group=1 failures=0/3: node b is gone"
    assert ENDED.told() == "stop workers=1 step=30 group=2 failures=4/3: rank 0: killed"


@pytest.mark.parametrize(
    "more", [{"kind": "grow"}, {"cause": 3}, {"before": "2"}, {"step": True}, {"time": "now"}, {"time": float("nan")}]
)
def test_values_of_another_kind_make_no_decision(more: dict[str, object]) -> None:
    assert decision_of({**SHRUNK.to_dict(), **more}) is None
    assert decision_of({**SHRUNK.to_dict(), "of later": 1}) == SHRUNK
