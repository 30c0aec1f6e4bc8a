"""What somebody at a terminal sees of a run, and what a log keeps of it where the view is piped."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cardialign.cluster.watching.cause import Cause
from cardialign.cluster.watching.state import CheckpointState, Restart, RunState
from cardialign.cluster.watching.terminal import lines, watch

CAUSE = Cause("data", "data: half of it", {"data": 0.5, "exchange": 0, "straggler": 0, "checkpoint": 0, "compute": 0.5})
RUNNING = RunState(
    "tiny", "running", 250, 1000, eta_seconds=4000.0, loss=1.23456, records_per_second=321.4,
    data_wait={"queue": 0.2, "read": 0.25, "decode": 0.01, "share": 0.5}, slowest_rank={"rank": 1, "host": "node-b"},
    slowest_shard="shard-000003.tar", checkpoint=CheckpointState(200, 95.0, 1.5, 400.0, 12.0),
    restarts=(Restart(1.0, "rank 1: killed"),), last_step_age_seconds=2.0, moves=True, cause=CAUSE,
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def now(self) -> float:
        return self.seconds


def seen(stream: io.StringIO, *states: RunState) -> str:
    """What `watch` writes while the run goes through these states, one at each look."""
    coming, clock = list(states), Clock()
    watch(Path("unused"), stream=stream, look=lambda: coming.pop(0), sleep=clock.sleep, now=clock.now)
    assert not coming, "the view ends with the run, not before"
    return stream.getvalue()


def test_everything_that_is_known_has_a_line() -> None:
    text = "\n".join(lines(RUNNING))
    for figure in (
        "tiny", "250 of 1000 (25 %)", "1h06m", "1.2346", "321.4", "data: half of it", "compute 50 %", "queue 200 ms",
        "1 on node-b", "shard-000003.tar", "step 200, 1m35s ago, a pause of 1.5 s, committed after 12 s",
        "rank 1: killed",
    ):  # fmt: skip
        assert figure in text, figure
    assert lines(RunState("x", "empty"))[1:] == [
        "state       no run so far", "step        0", "checkpoint  none so far", "restarts    0",
    ]  # fmt: skip


def test_a_pipe_gets_plain_lines_when_the_state_changes_and_now_and_then() -> None:
    steps = [replace(RUNNING, step=step) for step in range(250, 260)]  # a look every 2 seconds, a line every 10
    told = seen(io.StringIO(), *steps, replace(RUNNING, state="finished", step=1000)).splitlines()
    assert "\x1b" not in "".join(told) and all("data: half of it" in line for line in told)
    assert [line.split("  ")[2] for line in told] == [
        "step 250 of 1000 (25 %)", "step 255 of 1000 (26 %)", "step 1000 of 1000 (100 %)",
    ]  # fmt: skip


def test_a_terminal_gets_one_view_that_is_renewed_until_the_run_ends() -> None:
    failed = replace(RUNNING, state="failed", failure={"problem": "the disk is full", "remedy": "free space"})
    text = seen(Terminal(), RUNNING, failed)
    assert "\x1b[" in text and "250 of 1000" in text and "the disk is full" in text and "free space" in text


@pytest.mark.parametrize("width", [20, 28, 39, 40, 80])
def test_words_stay_whole_on_a_terminal_of_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    screen = seen(Terminal(), replace(RUNNING, state="finished"))
    told = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|[│╭╮╰╯]", " ", screen)
    for word in ("finished", "straggler", "checkpoint", "compute", "1.2346", "321.4", "killed", "1m35s", "node-b"):
        assert word in told, word
    assert max(len(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).strip()) for line in screen.splitlines()) <= width


def test_text_of_a_run_neither_moves_the_cursor_nor_becomes_markup() -> None:
    hostile = replace(
        RUNNING, name="[red]\x1b[2Jx", restarts=(Restart(None, "\x1b]0;owned\x07 [/bold]"),), state="stopped"
    )
    for stream in (io.StringIO(), Terminal()):
        text = seen(stream, hostile)
        assert "\x1b[2Jx" not in text and "\x1b]0;" not in text and "[red]" in text
    assert "\\x1b]0;owned\\x07 [/bold]" in "\n".join(lines(hostile))
