"""A run that stands still says what it waits for, and ends at its limit with a way out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cardialign.cluster.runs.waiting import Watch
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run.files import ATTEMPT, CHECKPOINTS, METRICS, NEXT_GROUP, WORKERS


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Run:
    """A run directory with two workers, looked at once a second of its own clock."""

    def __init__(self, run_dir: Path, free: dict[str, float], whole: dict[str, float]) -> None:
        self.run_dir, self.clock, self.told = run_dir, Clock(), list[str]()
        self.free, self.whole = free, whole
        self.watch = Watch(
            run_dir, {"CPU": 2.0}, 2, 600.0, lambda: (self.free, self.whole), self.told.append, self.clock
        )
        self.beats = 0

    def enter(self, *ranks: int, group: int = 1) -> None:
        (self.run_dir / ATTEMPT).write_text(json.dumps({"start": "abcdefgh12", "group": group}))
        (self.run_dir / WORKERS).mkdir(exist_ok=True)
        for rank in ranks:
            note = {"pid": 100 + rank, "host": "node-b", "group": f"abcdefgh.{group}", "log": f"logs/x/rank-{rank}.log"}
            (self.run_dir / WORKERS / f"rank-{rank}.json").write_text(json.dumps(note))

    def step(self) -> None:
        with (self.run_dir / METRICS).open("a") as trace:
            trace.write("{}\n")

    def pass_by(self, seconds: int, alive: tuple[int, ...] = ()) -> None:
        for _ in range(seconds):
            self.clock.seconds += 1
            self.beats += 1
            for rank in alive:
                os.utime(self.run_dir / WORKERS / f"rank-{rank}.json", (self.beats, self.beats))
            self.watch.look()


def test_resources_that_are_taken_are_told_with_their_numbers(tmp_path: Path) -> None:
    run = Run(tmp_path, {}, {"CPU": 4.0})
    run.pass_by(100)
    assert len(run.told) == 3, "after 20, 40 and 80 seconds"
    assert "the run is waiting for resources: 2 CPUs wanted, 0 free of 4 in the cluster, or " in run.told[0]
    assert "--wait-minutes" in run.told[0] and "10 min" in run.told[0]
    with pytest.raises(UserError, match=r"stood still for 10 min, waiting for resources: 2 CPUs") as raised:
        run.pass_by(600)
    assert "fewer workers (--workers)" in raised.value.remedy


def test_a_start_that_lacks_nothing_says_what_it_does_and_one_that_lacks_places_what_it_lacks(tmp_path: Path) -> None:
    run = Run(tmp_path, {}, {"CPU": 2.0})  # no CPU is free: its own workers have them
    (tmp_path / WORKERS).mkdir()

    def told(after: int, held: int, room: int | None) -> str:
        (tmp_path / ATTEMPT).write_text(json.dumps({"start": "abcdefgh12", "group": held}))
        note = {"start": "abcdefgh12", "after": after, "workers": 2, "room": room}
        (tmp_path / WORKERS / NEXT_GROUP).write_text(json.dumps({} if room is None else note))
        return run.watch.state()[0]

    assert told(0, 0, None).startswith("the controller of the workers")
    assert told(0, 0, 2) == "2 workers, whose processes are starting and import torch; all have their places"
    assert told(1, 1, 2).startswith("2 workers"), "the group after one that died"
    assert told(0, 0, 1).startswith("resources: 2 CPUs wanted, 0 free of 2")
    assert told(0, 1, 2).startswith("resources"), "that group has entered, and what it was told is past"
    (tmp_path / WORKERS / NEXT_GROUP).write_text(json.dumps({"start": "another", "after": 1, "workers": 2, "room": 2}))
    assert run.watch.state()[0].startswith("resources")


def test_a_cluster_that_is_too_small_waits_for_a_node(tmp_path: Path) -> None:
    run = Run(tmp_path, {"CPU": 1.0}, {"CPU": 1.0})
    run.pass_by(30)
    assert "waiting for a node: 2 CPUs wanted, 1 free of 1 in the cluster" in run.told[0]
    (tmp_path / ATTEMPT).write_text(json.dumps({"start": "abcdefgh12", "group": 0}))
    assert run.watch.state()[0].startswith("a node: 2 CPUs wanted"), "also before the controller has said anything"


def test_a_rank_that_does_not_come_or_falls_silent_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path, {}, {"CPU": 2.0})
    run.enter(0)
    run.pass_by(40, alive=(0,))
    assert "waiting for rank 1 to enter the run, 1 of 2 are in it" in run.told[-1]
    run.enter(1)
    run.step()
    run.pass_by(2, alive=(0, 1))
    assert "the run goes on" in run.told[-1]
    run.pass_by(60, alive=(0,))
    assert "waiting for rank 1 (process 101 on node-b, silent for " in run.told[-1]
    with pytest.raises(UserError, match=r"rank 1 .process 101 on node-b"):
        run.pass_by(600, alive=(0,))


def test_ranks_that_live_and_make_no_step_name_their_logs(tmp_path: Path) -> None:
    run = Run(tmp_path, {}, {"CPU": 2.0})
    run.enter(0, 1)
    with pytest.raises(UserError, match="waiting for the next step; all 2 ranks live") as raised:
        run.pass_by(700, alive=(0, 1))
    assert str(tmp_path / "logs" / "x") in raised.value.remedy


def test_a_run_that_goes_on_says_nothing_and_a_long_checkpoint_counts_as_going_on(tmp_path: Path) -> None:
    run = Run(tmp_path, {}, {"CPU": 2.0})
    run.enter(0, 1)
    for _ in range(100):
        run.step()
        run.pass_by(10, alive=(0, 1))
    part = tmp_path / CHECKPOINTS / ".tmp-x-step-00000001" / "engine" / "part.pt"
    part.parent.mkdir(parents=True)
    for size in range(100):
        part.write_bytes(b"x" * size)
        run.pass_by(10, alive=(0, 1))
    assert run.told == []


def test_a_folder_that_goes_while_it_is_looked_at_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, plain = Run(tmp_path, {}, {"CPU": 2.0}), os.scandir
    run.enter(0, 1)
    gone = tmp_path / CHECKPOINTS / ".tmp-x-universal-step-00000020" / "engine" / "tmp"
    gone.mkdir(parents=True)

    def scandir(path: str | Path) -> object:
        if str(path) == str(gone):
            raise FileNotFoundError(2, "No such file or directory", str(gone))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    run.pass_by(3, alive=(0, 1))
    assert run.told == []


def test_a_rank_of_a_larger_group_that_is_gone_is_waited_for_no_more(tmp_path: Path) -> None:
    run = Run(tmp_path, {}, {"CPU": 2.0})
    run.enter(0, 1)
    run.pass_by(2, alive=(0, 1))
    run.enter(0, group=2)
    note = tmp_path / WORKERS / "rank-0.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "world_size": 1}))
    run.pass_by(40, alive=(0,))
    assert run.watch.silent() == [] and run.watch.complete and run.watch.size == 1


def test_notes_of_a_group_that_is_gone_do_not_count(tmp_path: Path) -> None:
    run = Run(tmp_path, {}, {"CPU": 2.0})
    run.enter(0, 1, group=1)
    run.enter(group=2)
    run.pass_by(30)
    assert run.watch.entered == 0 and "waiting for resources" in run.told[0]


def test_a_cluster_that_does_not_answer_is_what_is_waited_for(tmp_path: Path) -> None:
    def gone() -> tuple[dict[str, float], dict[str, float]]:
        raise ConnectionError("GCS is down")

    clock, told = Clock(), list[str]()
    watch = Watch(tmp_path, {"CPU": 2.0}, 2, 600.0, gone, told.append, clock)
    for _ in range(30):
        clock.seconds += 1
        watch.look()
    assert "waiting for the Ray cluster, which does not answer (GCS is down)" in told[0]
