"""How a run stands, from files as its processes write them: what is right is counted on paper from what was planted."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.jobs.standing import told as standing_told
from cardialign.cluster.runs.reporting import read_state
from cardialign.cluster.watching.decisions import Decision
from cardialign.cluster.watching.state import RunState, run_state
from cardialign.cluster.watching.terminal import facts
from cardialign.pretrain.run.figures import RankFigures, read_figures, write_figures
from cardialign.pretrain.run.files import (
    ATTEMPTS,
    CHECKPOINTS,
    CONFIG,
    DEATHS,
    DECISIONS,
    FAILURE,
    FIGURES,
    LOCK,
    METRICS,
    RESULT,
    STOP,
)
from cardialign.pretrain.training.checkpoints.files import commit, temporary_path

NOW = 1_800_000_000.0
RANK = RankFigures(
    rank=0, world_size=2, host="node-a", group="s.1", time=NOW - 3, step=400, steps=1000, global_batch=64,
    window_steps=100, window_seconds=40.0, data=2.0, agree=2.0, exchange=6.0, own=30.0, p50=0.4, p99=0.6,
    read=5.0, decode=8.0, reads=3200, shard="shard-000003.tar", shard_seconds=3.0, shard_reads=900,
    pause=10.0, pause_interval=100.0, commit=25.0, totals={"steps": 400.0},
)  # fmt: skip


class Run:
    """A run directory with what its processes would have written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        training = {"steps": 1000, "global_batch": 64, "checkpoint_every": 200}
        self.write(CONFIG, {"name": "tiny", "training": training, "collapse": {"enabled": True, "min_rank": 2.0}})

    def write(self, name: str, values: dict[str, Any]) -> None:
        (self.folder / name).write_text(json.dumps(values))

    def trace(self, *steps: int, age: float = 3.0, tail: str = "", **last: Any) -> None:
        lines = [{"step": step, "loss": 3.0 - step / 1000} for step in steps]
        lines[-1] |= last
        (self.folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
        os.utime(self.folder / METRICS, (NOW - age, NOW - age))

    def spool(self, name: str, *lines: dict[str, Any]) -> None:
        (self.folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    def figures(self, *ranks: RankFigures) -> None:
        for rank in ranks:
            write_figures(self.folder, rank)

    def state(self) -> RunState:
        return run_state(self.folder, now=NOW)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_running_run_tells_step_pace_and_end(run: Run) -> None:
    run.trace(399, 400, effective_rank=17.5, effective_negatives=60.25)
    run.figures(RANK, replace(RANK, rank=1, host="node-b", own=34.0, exchange=2.0))
    state = run.state()
    assert (state.name, state.state, state.step, state.steps, state.moves) == ("tiny", "running", 400, 1000, True)
    assert state.loss == pytest.approx(2.6) and (state.effective_rank, state.effective_negatives) == (17.5, 60.25)
    # 0.4 s a step, a tenth of the time is pauses: 600 steps take 600 * 0.4 / 0.9 s, 64 records each
    assert state.eta_seconds == pytest.approx(266.67, abs=0.01) and state.records_per_second == pytest.approx(144.0)
    assert (state.checkpoint.pause_seconds, state.checkpoint.commit_seconds) == (10.0, 25.0)
    assert state.checkpoint.every_seconds == pytest.approx(200 * 0.4 / 0.9)
    assert state.data_wait["queue"] == pytest.approx(0.02) and state.data_wait["decode"] == pytest.approx(0.08)
    assert state.slowest_rank == {"rank": 1, "host": "node-b"} and state.slowest_shard == "shard-000003.tar"
    assert state.collapse_below == 2.0 and state.cause is not None
    assert json.loads(json.dumps(state.to_dict()))["cause"]["word"] == state.cause.word


def test_a_run_whose_last_step_is_too_old_stands_still(run: Run) -> None:
    run.trace(400, age=59)
    assert run.state().state == "running"
    run.trace(400, age=61)
    assert run.state().state == "interrupted", "nobody holds it: it was killed, or its driver was"
    (run.folder / LOCK).touch()
    assert (run.state().state, run.state().moves) == ("stalled", False)
    run.figures(replace(RANK, p99=30.0))  # ten such steps and three pauses of 10 s are 330 s
    assert run.state().state == "running"
    run.trace(400, age=331)
    assert run.state().state == "stalled"


def test_the_end_of_a_run_has_its_word(run: Run) -> None:
    os.utime(run.folder / CONFIG, (NOW - 50, NOW - 50))
    assert run.state().state == "starting"
    os.utime(run.folder / CONFIG, (NOW - 70, NOW - 70))
    assert run.state().state == "interrupted"
    (run.folder / LOCK).touch()
    assert run.state().state == "starting", "its driver waits, and says for what"
    run.trace(400, age=1e6)
    run.write(RESULT, {"stopped": True, "steps": 400, "total_steps": 1000})
    assert run.state().state == "stopped" and run.state().eta_seconds is None
    run.write(RESULT, {"stopped": False})
    assert run.state().state == "finished"
    run.write(FAILURE, {"type": "CollapseError", "problem": "step 4: flat", "remedy": "lower it", "rank": 1})
    state = run.state()
    assert state.state == "failed" and state.failure is not None and state.failure["problem"] == "step 4: flat"


def test_a_run_without_ray_is_finished_at_its_last_step(run: Run) -> None:
    run.trace(1000, age=1e6)
    assert run.state().state == "finished"


def test_who_asked_for_a_stop_is_told_that_it_has_been_heard(run: Run) -> None:
    run.trace(400)
    (run.folder / STOP).write_text("SIGTERM\n")
    assert run.state().stop_asked


def test_the_newest_committed_checkpoint_and_its_age(run: Run) -> None:
    run.spool(ATTEMPTS, {"time": NOW - 500, "world_size": 2})
    run.trace(400)
    assert run.state().checkpoint.step == 0 and run.state().checkpoint.age_seconds == pytest.approx(500)
    for step in (200, 400):
        temporary_path(run.folder, step).mkdir(parents=True)
        path = commit(run.folder, step, {}, {})
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["created"] = "2027-01-15T08:00:00+00:00"  # NOW is that moment
        (path / "manifest.json").write_text(json.dumps(manifest))
    (run.folder / CHECKPOINTS / ".tmp-step-00000600").mkdir()
    os.utime(run.folder / CHECKPOINTS / "step-00000400", (NOW - 40, NOW - 40))
    state = run.state()  # a manifest that is not what was written: the folder's own time counts
    assert state.checkpoint.step == 400 and state.checkpoint.age_seconds == pytest.approx(40)


def test_each_restart_has_the_cause_that_was_noted_before_it(run: Run) -> None:
    run.spool(ATTEMPTS, *({"time": NOW - age, "world_size": 2} for age in (900, 600, 300)))
    run.spool(
        DEATHS, {"time": NOW - 610, "cause": "rank 1: its process was killed"}, {"time": NOW - 5, "cause": "later"}
    )
    first, second = run.state().restarts
    assert (first.time, first.cause) == (NOW - 600, "rank 1: its process was killed")
    assert second.time == NOW - 300 and "given again" in second.cause


@pytest.mark.parametrize("jump", [86400.0, -3600.0])
def test_a_restart_keeps_its_cause_though_the_clock_was_set_meanwhile(run: Run, jump: float) -> None:
    """The clock jumps behind the first start; the second restart is the command given again."""
    begun = (NOW - 900, NOW - 600 + jump, NOW - 300)
    run.spool(ATTEMPTS, *({"time": at, "world_size": 2} for at in begun))
    killed = {"time": NOW - 610 + jump, "cause": "rank 1: its process was killed", "starts": 1}
    run.spool(DEATHS, killed, {"time": NOW - 5, "cause": "later", "starts": 3})
    first, second = run.state().restarts
    assert first.cause == "rank 1: its process was killed" and "given again" in second.cause
    retried = Decision("retry", "rank 1 was killed", 2, 2, 1, 1, 3, 22, time=NOW - 605 + jump)
    run.spool(DECISIONS, {**retried.to_dict(), "starts": 1})
    assert [restart.cause for restart in run.state().restarts] == [retried.cause, second.cause]


def test_a_decision_says_more_of_a_restart_than_a_death_and_is_shown(run: Run) -> None:
    run.spool(ATTEMPTS, *({"time": NOW - age, "world_size": 2} for age in (900, 600, 300)))
    run.spool(DEATHS, {"time": NOW - 610, "cause": "rank 1: its process was killed"})
    shrunk = Decision("resize", "node b is gone; rank 1: its process was killed", 2, 1, 1, 0, 3, 22, time=NOW - 605)
    grown = Decision("resize", "room for 2", 1, 2, 2, 0, 3, 60, planned=True, time=NOW - 310)
    run.spool(DECISIONS, shrunk.to_dict(), grown.to_dict())
    state = run.state()
    assert [restart.cause for restart in state.restarts] == [shrunk.cause, grown.cause]
    assert state.decisions == (shrunk, grown) and facts(state)["decided"] == grown.told()
    told = standing_told({"job": None, "run_dir": "", "run": read_state(run.folder)})
    assert told["decision 1"].endswith(shrunk.told()) and told["decision 2"].endswith(grown.told())


@pytest.mark.parametrize("torn", ["", "{", "null", "[1]", "\0\0\0", "[" * 100_000])
def test_torn_files_and_files_of_others_are_left_out(run: Run, torn: str) -> None:
    run.trace(398, 399, tail='{"step": "x"}\n{"step": true}\n' + torn)
    for name in (RESULT, FAILURE, ATTEMPTS, DEATHS, DECISIONS, CONFIG):
        (run.folder / name).write_text(torn)
    (run.folder / FIGURES).mkdir()
    (run.folder / FIGURES / "rank-0.json").write_text(torn)
    state = run.state()
    assert state.step == 399 and state.loss == pytest.approx(2.601) and state.ranks == () and state.cause is None
    assert state.state == "running" and state.restarts == ()


def test_no_run_and_no_folder_are_empty(tmp_path: Path) -> None:
    assert run_state(tmp_path).state == run_state(tmp_path / "nowhere").state == "empty"


def test_a_long_trace_is_not_read_from_its_beginning(run: Run) -> None:
    line = json.dumps({"step": 1, "loss": 9.0, "effective_rank": 1.0, "digest": "x" * 200})
    (run.folder / METRICS).write_text((line + "\n") * 4000 + json.dumps({"step": 4001, "loss": 1.0}) + "\n")
    assert (run.folder / METRICS).stat().st_size > 1 << 18
    assert run.state().step == 4001 and run.state().loss == 1.0


def test_notes_come_back_as_written_and_only_those_of_the_newest_group(tmp_path: Path) -> None:
    write_figures(tmp_path, RANK)
    write_figures(tmp_path, replace(RANK, rank=2, group="s.0", time=NOW - 900))
    assert read_figures(tmp_path) == [RANK]
    older = asdict(RANK)
    del older["device"], older["totals"]
    (tmp_path / FIGURES / "rank-1.json").write_text(json.dumps({**older, "rank": 1, "new": 1}))
    assert [(note.rank, note.device) for note in read_figures(tmp_path)] == [(0, "cpu"), (1, "cpu")]
    for wrong in ({"own": -1.0}, {"own": "3"}, {"own": float("nan")}, {"step": True}, {"host": 3}, {"own": 1e400}):
        (tmp_path / FIGURES / "rank-1.json").write_text(json.dumps({**asdict(RANK), "rank": 1, **wrong}))
        assert read_figures(tmp_path) == [RANK], wrong
