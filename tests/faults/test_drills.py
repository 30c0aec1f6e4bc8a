"""Drills are the tests of faults: the same files as `cardialign drill`, a quick look at what they judge by first."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cardialign.cluster.commands.drill import summary
from cardialign.cluster.drills import DRILLS, drill_of, patience
from cardialign.cluster.drills.checkpoints import killed_writing
from cardialign.cluster.drills.clock.jumps import FILE, JUMPING
from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.outcome import BrokenError, Outcome, SkippedError
from cardialign.cluster.drills.soak import random_faults, soak, steps_for
from cardialign.cluster.drills.traces import first_difference, judge_rounded_trace
from cardialign.cluster.drills.try_all import HEAD, try_all
from cardialign.cluster.main import main
from cardialign.cluster.runs.planned import FOLDER, Fault, mark_of, planned, stepped, write_plan
from cardialign.data_shards.errors import DONE, FAILED
from cardialign.pretrain.run.files import METRICS

IN_CI = ("given-up", "checkpoint-cut", "checkpoint-none", "shard-flipped", "nan-stops", "model-cut")
"""Drills of seconds, on the loop alone; the others are tried where machines are started anyway."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("drills"))


def test_every_drill_is_in_the_table_and_says_what_it_promises() -> None:
    for name in DRILLS:
        drill = drill_of(name)
        assert drill.promise.endswith(".") and len(drill.promise.split()) > 6 and "|" not in drill.fault, name
    assert {each.split(".")[0] for each in DRILLS.values()} >= {"workers", "driver", "checkpoints", "shards", "storage"}


def lines(*losses: float) -> list[dict[str, Any]]:
    return [{"step": step, "loss": loss, "digest": f"d{step}"} for step, loss in enumerate(losses, start=1)]


def test_the_first_difference_of_two_traces_is_named_with_both_values() -> None:
    assert first_difference(lines(1.0, 0.5), lines(1.0, 0.5)) is None
    assert first_difference(lines(float("nan")), lines(float("nan"))) is None
    assert first_difference(lines(1.0, 0.5), lines(1.0, 0.25)) == "step 2, loss: 0.5, undisturbed 0.25"
    assert "step 1, loss: 0.30000000000000004" in (first_difference(lines(0.1 + 0.2), lines(0.3)) or "")
    other = [*lines(1.0), {"step": 2, "loss": 0.5, "digest": "x"}]
    assert "step 2, digest: 'x'" in (first_difference(other, lines(1.0, 0.5)) or "")
    assert "1 steps instead of 2" in (first_difference(lines(1.0), lines(1.0, 0.5)) or "")
    timed = [{**line, "records_per_second": 3.0} for line in lines(1.0)]
    assert first_difference(timed, lines(1.0)) is None, "the clock is no part of a run"


def test_between_numbers_of_workers_records_are_equal_and_losses_to_rounding(tmp_path: Path) -> None:
    def judged(*found: dict[str, Any]) -> Outcome:
        (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in found))
        return judge_rounded_trace(Outcome(), tmp_path, lines(1.0, 0.5))

    assert judged(*lines(1.0 + 4e-7, 0.5)).equal is True
    with pytest.raises(BrokenError, match=r"step 2, loss: 0\.500002"):
        judged(*lines(1.0, 0.500002))
    with pytest.raises(BrokenError, match="step 2, loss: nan"):
        judged(*lines(1.0, float("nan")))
    with pytest.raises(BrokenError, match="step 2, digest: 'x'"):
        judged(*lines(1.0), {"step": 2, "loss": 0.5, "digest": "x"})
    with pytest.raises(BrokenError, match="1 steps instead of 2"):
        judged(*lines(1.0))


def test_a_broken_promise_ends_with_1_and_says_what_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: Ground) -> Outcome:
        raise BrokenError("the trace differs: step 7, loss: 1.0, undisturbed 2.0")

    def skips(_: Ground) -> Outcome:
        raise SkippedError("a disk of its own needs root")

    runs = {"worker-killed": lambda _: Outcome(1.25, 3, 8.5, True), "sigterm": breaks, "disk-full": skips}
    promise = "It holds."
    monkeypatch.setattr(
        "cardialign.cluster.drills.try_all.drill_of", lambda name: Drill(f"fault {name}", promise, runs[name])
    )
    said: list[str] = []
    result = try_all(list(runs), Ground(tmp_path), said.append)
    assert (result["kept"], result["broken"], result["skipped"], result["exit_code"]) == (1, 1, 1, FAILED)
    told = summary(result)
    assert told[0].split("|")[1].strip() == HEAD[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in told[2:5]]
    assert cells[0] == ["fault worker-killed", "1.2 s", "3", "8.5 s", "yes", "kept"]
    assert [row[-1] for row in cells] == ["kept", "broken", "skipped"]
    assert any("step 7, loss" in line for line in told) and any(promise in line for line in told) and len(said) == 3
    assert try_all(["worker-killed"], Ground(tmp_path / "b"), said.append)["exit_code"] == DONE


@pytest.mark.parametrize(("waiting", "seconds"), [(0.0, 10), (4.0, 10), (8.0, 20), (40.0, 100)])
def test_a_second_of_a_busy_machine_is_a_part_of_one(
    waiting: float, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds of four CPUs, for four processes that want them, for eight and for forty."""
    now = [1000.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(patience.os, "getloadavg", lambda: (waiting, 0.0, 0.0))
    monkeypatch.setattr(patience, "usable_cpus", lambda: 4)
    clock, asked = patience.Patience(10), 0
    while not clock.over():
        now[0] += 0.5
        asked += 1
    assert asked / 2 == pytest.approx(seconds, abs=0.5)


def test_the_same_seed_sets_the_same_faults_of_every_kind() -> None:
    faults = random_faults(400, 3)
    assert faults == random_faults(400, 3) and faults[:50] == random_faults(50, 3) and faults != random_faults(400, 4)
    assert {each.kind for each in faults} == {"kill", "stop", "flip", "outage"}
    assert any(each.write for each in faults) and all(each.ahead >= 1 for each in faults)
    assert steps_for(2000) >= 2000


def test_a_planned_fault_happens_once_in_its_rank_alone_and_costs_nothing_when_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert planned(0, {}) is None and planned(0, {FOLDER: ""}) is None
    sent: list[int] = []
    monkeypatch.setattr("cardialign.cluster.runs.planned.os.kill", lambda pid, number: sent.append(number))
    write_plan(tmp_path, (Fault("kill", step=3, rank=1),))
    for rank, kills in ((0, 0), (1, 1), (1, 1)):  # a second start of rank 1 finds the mark
        after_step = planned(rank, {FOLDER: str(tmp_path)})
        assert after_step is not None
        for step in (2, 3, 4):
            after_step(step)
        assert sent.count(9) == kills
    assert mark_of(tmp_path, 0).exists() and [step for _, step in stepped(tmp_path, 0)] == [2, 3, 4]


def test_planned_nan_is_in_one_step_of_one_rank_alone(tmp_path: Path) -> None:
    write_plan(tmp_path, (Fault("nan", step=3, rank=1),))
    ones, layer = torch.ones(1, 2), torch.nn.Linear(2, 2)

    def finite(rank: int) -> list[bool]:
        after_step, found = planned(rank, {FOLDER: str(tmp_path)}), []
        assert after_step is not None
        for step in range(1, 7):
            found.append(bool(torch.isfinite(layer(ones)).all()))
            after_step(step)
        return found

    assert finite(0) == [True] * 6
    assert finite(1) == [True, True, True, False, True, True]
    assert finite(1) == [True] * 6, "a second start finds the mark"


def test_the_clock_of_a_drilled_process_jumps_and_that_of_another_does_not(tmp_path: Path) -> None:
    clock, touched = tmp_path / "clock", tmp_path / "touched"
    clock.write_text("-3600")
    read = "import os, pathlib, sys, time; path = pathlib.Path(sys.argv[1]); path.touch(); path.touch(); "
    read += "now = time.clock_gettime(time.CLOCK_REALTIME); print(time.time() - now, path.stat().st_mtime - now)"

    def shifts(**more: str) -> list[float]:
        words = [sys.executable, "-c", read, str(touched)]
        environment = {**os.environ, "PYTHONPATH": str(JUMPING), **more}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        return [float(each) for each in done.stdout.split()]

    assert shifts(**{FILE: str(clock)}) == pytest.approx([-3600, -3600], abs=60)
    assert shifts(**{FILE: ""}) == pytest.approx([0, 0], abs=60)
    assert shifts(**{FILE: str(tmp_path / "nowhere")}) == pytest.approx([0, 0], abs=60)


def test_planned_slow_reads_are_those_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("cardialign.cluster.runs.planned.time.sleep", slept.append)
    monkeypatch.setattr("os.pread", os.pread)  # put back at the end
    write_plan(tmp_path, (Fault("slow", step=1, seconds=7.5, file="shard-1.tar"),))
    after_step = planned(0, {FOLDER: str(tmp_path)})
    assert after_step is not None
    after_step(1)
    slept.clear()
    for name in ("shard-0.tar", "shard-1.tar"):
        (tmp_path / name).write_bytes(name.encode())
        descriptor = os.open(tmp_path / name, os.O_RDONLY)
        assert os.pread(descriptor, 5, 2) == name.encode()[2:7]
        os.close(descriptor)
    assert slept == [7.5]


def test_drills_are_listed_and_an_unknown_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drill", "--list", "--json"]) == DONE
    assert [each["name"] for each in json.loads(capsys.readouterr().out)["drills"]] == list(DRILLS)
    assert main(["drill", "worker-kiled"]) == 2
    assert "worker-kiled" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", IN_CI)
def test_a_promise_is_kept(ground: Ground, name: str) -> None:
    outcome = drill_of(name).run(ground)
    assert outcome.verdict == "kept" and not outcome.leftovers and outcome.equal is not False


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(900)
def test_the_write_points_of_a_checkpoint_are_hit_and_the_last_is_among_them(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(killed_writing, "MOST", 3)
    outcome = killed_writing.DRILL.run(ground)
    points, _, of = outcome.note.partition(" of ")
    assert points == "3" and int(of.split()[0]) > 20 and outcome.equal


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(1800)
def test_a_run_under_random_faults_ends_as_the_undisturbed_one(ground: Ground) -> None:
    outcome = soak(ground, 10, logging.info)
    assert outcome.equal and "10 faults" in outcome.note


@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.timeout(10800)
@pytest.mark.parametrize("name", [name for name in DRILLS if name not in IN_CI])
def test_a_promise_is_kept_where_machines_are_started(ground: Ground, name: str) -> None:
    try:
        outcome = drill_of(name).run(ground)
    except SkippedError as error:
        pytest.skip(str(error))
    assert outcome.verdict == "kept" and not outcome.leftovers and outcome.equal is not False
