"""How a start of a run ended is a decision, too: written down once, whoever decided it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cardialign.cluster.environment.sizes import Sizes
from cardialign.cluster.runs.deciding.keeper import note
from cardialign.cluster.runs.deciding.lines import DecisionLines
from cardialign.cluster.watching.decisions import Decision, read_decisions
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import METRICS, RESIZE, STOP

SHRUNK = Decision("resize", "node b is gone", 2, 1, 1, 1, 3, 22)
GROWN = Decision("resize", "room for 2", 1, 2, 2, 1, 3, 40, planned=True)


def test_decisions_of_the_controller_are_told_once_by_the_driver(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note(tmp_path, Decision("stop", "an earlier start", 2, 0, 1))
    lines = DecisionLines(tmp_path, Sizes(1, 2))
    assert lines.workers == 2 and lines.planned == 0 and lines.made == []
    with caplog.at_level(logging.WARNING):
        for decision in (SHRUNK, GROWN):
            note(tmp_path, decision)
            lines.look()
            lines.look()
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"decision {SHRUNK.told()}", f"decision {GROWN.told()}"]
    assert lines.workers == 2 and lines.planned == 1 and lines.made == [SHRUNK, GROWN]


@pytest.mark.parametrize(
    ("error", "cause"),
    [(UserError("the disk is full", "free it"), "the disk is full"), (KeyboardInterrupt(), "Ctrl-C")],
)
def test_what_ends_a_run_is_written_down_with_its_step(tmp_path: Path, error: BaseException, cause: str) -> None:
    (tmp_path / METRICS).write_text('{"step": 7}\n')
    lines = DecisionLines(tmp_path, Sizes(1, 2))
    note(tmp_path, SHRUNK)
    with pytest.raises(type(error)), lines.ending():
        raise error
    last = read_decisions(tmp_path)[-1]
    assert (last.kind, last.cause, last.before, last.after, last.step) == ("stop", cause, 1, 0, 7)
    assert (last.attempt, last.failures, last.of) == (2, 1, 3)


def test_a_stop_that_the_controller_has_written_down_is_not_written_twice(tmp_path: Path) -> None:
    lines = DecisionLines(tmp_path, Sizes(2, 2))
    note(tmp_path, Decision("stop", "rank 1: killed", 2, 0, 4, 4, 3, 9))
    with pytest.raises(UserError), lines.ending():
        raise UserError("training failed on rank 1: killed", "again")
    assert len(read_decisions(tmp_path)) == 1


def test_a_run_that_was_taken_over_is_left_alone(tmp_path: Path) -> None:
    lines = DecisionLines(tmp_path, Sizes(2, 2))
    with pytest.raises(fence.FencedOutError), lines.ending():
        raise fence.FencedOutError("another one", "")
    assert read_decisions(tmp_path) == []


def test_a_stop_at_a_checkpoint_says_who_asked(tmp_path: Path) -> None:
    (tmp_path / STOP).write_text("SIGTERM\n")
    DecisionLines(tmp_path, Sizes(2, 2)).stopped()
    (last,) = read_decisions(tmp_path)
    assert last.kind == "stop" and "asked to stop (SIGTERM)" in last.cause


def test_a_request_to_grow_is_no_leftover_but_that_of_another_start_is_left(tmp_path: Path) -> None:
    mine = fence.take_start(tmp_path)
    lines = DecisionLines(tmp_path, Sizes(1, 2))
    (tmp_path / RESIZE).write_text("{}")
    lines.close()
    assert not (tmp_path / RESIZE).exists()
    (tmp_path / RESIZE).write_text("{}")
    fence.take_start(tmp_path)  # as another driver would
    fence._held[tmp_path] = mine
    lines.close()
    assert (tmp_path / RESIZE).exists()
