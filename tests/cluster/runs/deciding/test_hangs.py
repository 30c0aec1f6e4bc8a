"""When a worker group counts as hung: by progress alone, generously, and never for a clock that jumps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.runs.deciding import stacks
from cardialign.cluster.runs.deciding.hangs import LONGEST_LOOK, Hangs, signs
from cardialign.cluster.runs.deciding.stacks import Seen, look_at, take
from cardialign.pretrain.run.files import CHECKPOINTS, METRICS, WORKERS

LIMIT = 600.0


class Group:
    """A group that is looked at every two seconds of the test's clock."""

    def __init__(self) -> None:
        self.seconds, self.signs = 1000.0, list[Any]()
        self.trace = (METRICS, 0, 7, 0)
        self.hangs = Hangs(LIMIT, lambda: [*self.signs, self.trace], lambda: self.seconds)

    def step(self) -> None:
        name, size, inode, _ = self.trace
        self.trace = (name, size + 10, inode, 0)

    def still_for(self, seconds: float, look: float = 2.0) -> float | None:
        """Nothing moves: after how long it counts as hung, None when it does not within `seconds`."""
        began = self.seconds
        while self.seconds - began < seconds:
            self.seconds += look
            if self.hangs.look():
                return self.seconds - began
        return None

    def trains(self) -> None:
        for _ in range(3):
            self.step()
            self.seconds += 2
            assert not self.hangs.look()


def test_a_group_hangs_once_no_rank_has_moved_for_the_limit_and_is_begun_anew() -> None:
    group = Group()
    group.trains()
    found = group.still_for(3 * LIMIT)
    assert found is not None and LIMIT < found <= LIMIT + 4
    group.hangs.begin()
    assert not group.hangs.look() and group.still_for(LIMIT) is None, "the next group has its own time"


def test_before_the_first_step_it_has_twice_the_time() -> None:
    group = Group()
    assert group.still_for(2 * LIMIT - 10) is None
    group.hangs.begin()
    group.trace = (METRICS, 500, 8, 0)  # the trace of the steps before is opened, and is another file
    assert not group.hangs.look() and group.still_for(2 * LIMIT - 10) is None
    assert group.still_for(60) is not None


def test_whatever_moves_is_enough_also_where_the_disk_takes_no_trace() -> None:
    group = Group()
    group.trains()
    for beat in range(100):
        group.signs = [("rank-1.moved", 0, 3, beat)]
        assert group.still_for(LIMIT - 20) is None


def test_a_machine_that_was_suspended_and_a_clock_that_jumps_are_no_hang() -> None:
    group = Group()
    group.trains()
    for jump in (8 * 3600.0, -3600.0, 30 * 86400.0):
        group.seconds += jump
        assert not group.hangs.look()
        assert group.hangs.still_seconds <= 3 * LONGEST_LOOK
    assert group.still_for(LIMIT + 10) is not None, "what is looked at counts"


def test_steps_that_take_long_are_given_three_times_as_long() -> None:
    group = Group()
    group.trains()
    assert group.still_for(LIMIT - 10) is None
    group.step()
    assert not group.hangs.look() and group.still_for(2 * LIMIT) is None
    found = group.still_for(2 * LIMIT)
    assert found is not None and 2 * LIMIT + found <= 3 * LIMIT + 4


def test_signs_are_the_loop_the_trace_and_a_checkpoint_that_grows_and_not_a_beat(tmp_path: Path) -> None:
    (tmp_path / WORKERS).mkdir()
    (tmp_path / CHECKPOINTS / ".tmp-5").mkdir(parents=True)
    note, moved = tmp_path / WORKERS / "rank-1.json", tmp_path / WORKERS / "rank-1.moved"
    for path in (note, moved, tmp_path / METRICS, tmp_path / CHECKPOINTS / ".tmp-5" / "a"):
        path.touch()
    before = signs(tmp_path)
    os.utime(note, (5, 5))
    assert signs(tmp_path) == before, "that a process lives is no progress"
    for path in (moved, tmp_path / METRICS, tmp_path / CHECKPOINTS / ".tmp-5" / "a"):
        os.utime(path, (5, 5))
        assert signs(tmp_path) != before, path
        before = signs(tmp_path)


GROUP = "abcdefgh.1"
CHILD = f"""
import sys, threading, time
from cardialign.cluster.runs.deciding.stacks import offer
offer({GROUP!r})
def beats():
    time.sleep(600)
threading.Thread(target=beats, daemon=True).start()
def read_that_never_returns():
    print("ready", flush=True)
    time.sleep(600)
read_that_never_returns()
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="a system without /proc")
@pytest.mark.processes
def test_a_process_that_lives_says_where_it_stands_and_of_one_that_is_stopped_the_kernel_does(
    worker: subprocess.Popen[str], tmp_path: Path
) -> None:
    state, text = look_at({0: worker.pid}, GROUP)[0]
    assert state in "SR" and "in read_that_never_returns" in text and "in beats" in text, "all of its threads"
    assert f"Pid:\t{worker.pid}" in text
    assert worker.poll() is None, "to be asked harms nobody"
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 10
        while (found := look_at({0: worker.pid}, GROUP)[0])[0] != "T":
            assert time.monotonic() < deadline
        assert "State:\tT (stopped)" in found[1] and Seen(*found).told == "is stopped (SIGSTOP)"
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    assert look_at({0: worker.pid, 1: os.getpid()}, "another.9")[0][0] == "", "a process of others is left alone"
    assert worker.poll() is None


LOOP = '  File "/a/pretrain/training/loop.py", line 9 in steps\n'
WAITS = 'Thread 0x01 (most recent call first):\n  File "/x/torch/distributed/c10d.py", line 3 in all_reduce\n' + LOOP
READS = (
    'Current thread 0x02 (most recent call first):\n  File "/x/socket.py", line 7 in recv\n'
    '  File "/a/cardialign/payloads.py", line 41 in read\n' + LOOP
)


def test_the_rank_at_fault_is_the_one_that_waits_for_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = 'Thread 0x03 (most recent call first):\n  File "/x/torch/distributed/store.py", line 3 in get\n'
    assert Seen("S", f"...\n{other}\n{READS}").told == "is at socket.py:7 in recv, called by payloads.py:41 in read"
    assert Seen("S", f"...\n{READS}\n{WAITS}".replace(READS, other)).told == ""
    assert "kernel" in Seen("D", "").told and "no answer" in Seen("", "").told

    (tmp_path / WORKERS).mkdir()
    (tmp_path / "logs" / "x").mkdir(parents=True)
    for rank in range(2):
        note = {"pid": 100 + rank, "host": "node-b", "group": GROUP, "log": f"logs/x/rank-{rank}.log"}
        (tmp_path / WORKERS / f"rank-{rank}.json").write_text(json.dumps(note))
    monkeypatch.setattr(stacks, "_ask", lambda *_: {0: Seen("S", f"a\n{WAITS}"), 1: Seen("S", f"a\n{READS}")})
    told = take(tmp_path, ["n", "n"])
    assert told.startswith("rank 1 (process 101 on node-b) is at socket.py:7 in recv, called by payloads.py:41 in read")
    assert told.endswith("; stacks in logs/x")
    assert "in all_reduce" in (tmp_path / "logs/x/rank-0.stacks").read_text()
    monkeypatch.setattr(stacks, "_ask", lambda *_: {})
    assert take(tmp_path, ["n", "n"]).startswith("rank 0 (process 100 on node-b) gives no answer")
