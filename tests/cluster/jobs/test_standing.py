"""How a job and its run stand, from the dashboard alone or from the run directory; its logs; and how it is stopped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs_server import Dashboard

Command = Callable[..., Any]
NOW = time.time()
STATE = {
    "phase": "running", "step": 40, "steps": 100, "loss": 1.25, "records_per_second": 64.0, "eta_seconds": 7800.0,
    "last_checkpoint_step": 30, "checkpoint_age_seconds": 12.0, "problem": None, "waits_for": None, "pid": 4711,
    "host": "node-a", "run_dir": "/shared/runs/a",
    "restarts": [{"time": "20261126-030000", "cause": "its workers were lost"}],
}  # fmt: skip


def line(**more: Any) -> str:
    return f"cardialign-state 1 {json.dumps({**STATE, 'time': NOW - 5, **more})}\n"


@pytest.fixture
def job(board: Dashboard) -> str:
    """A running job of ada, whose run directory this machine does not see."""
    metadata = {"cardialign": "1", "name": "one", "user": "ada", "host": "laptop", "run_dir": "/shared/runs/a"}
    asked = {"submission_id": "one-1", "entrypoint": "exec python", "metadata": {**metadata, "command": "pretrain"}}
    board.answer("POST", "/api/jobs/", json.dumps(asked).encode())
    board.run("one-1")
    board.logs["one-1"] = "starting\n" + line(step=20) + "cardialign-state 9 {}\n" + line() + "a warning\n"
    return "one-1"


@pytest.mark.parametrize("word", ["one", "one-1", "/shared/runs/a", "/shared/runs/a/"])
def test_a_job_is_found_by_name_id_or_folder_and_told_from_its_log_alone(
    cardialign: Command, board: Dashboard, job: str, word: str
) -> None:
    told = cardialign("status", word, "--address", board.address).json
    assert (told["job"], told["state"], told["run"]["step"], told["run"]["seen"]) == (job, "running", 40, "log")
    shown = cardialign("status", word, "--address", board.address, plain=True).out
    assert "40 of 100" in shown and "2 h 10 min" in shown and "step 30, 12 s old" in shown
    assert "1, the last: its workers were lost" in shown


def test_why_it_is_slow_is_told_and_watching_says_a_line_for_each_change_until_the_end(
    cardialign: Command, board: Dashboard, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cardialign.cluster.jobs import standing

    slow = {"word": "straggler", "line": "straggler: rank 3 on node-b works 2 s a step, the others 1 s", "shares": {}}
    rank = {"rank": 3, "host": "node-b"}
    board.logs[job] += line(cause=slow, slowest_rank=rank, slowest_shard="shard-000007.tar")
    shown = cardialign("status", "one", "--address", board.address, plain=True).out
    assert "slow because" in shown and slow["line"] in shown and "3 on node-b" in shown and "shard-000007.tar" in shown

    def passes(seconds: float) -> None:
        if "watched" in board.logs[job]:
            board.end(job, "SUCCEEDED", 0)
        board.logs[job] += "watched\n" + line(step=41, cause=slow)

    monkeypatch.setattr(standing.time, "sleep", passes)
    monkeypatch.setattr(standing.time, "time", lambda: 1.8e9)
    answer = cardialign("status", "one", "--watch", "--address", board.address, plain=True)
    watched = [each for each in answer.out.splitlines() if each.startswith("name one  state")]
    assert [words in each for words, each in zip(("step 40 of", "step 41 of", "state finished"), watched, strict=True)]
    assert slow["line"] in watched[0]


def test_what_a_step_waits_for_and_what_each_restart_was_for_are_told(
    cardialign: Command, board: Dashboard, job: str
) -> None:
    causes = ["rank 1 was killed", "node b is gone", "rank 1 was killed", "asked for"]
    board.logs[job] += line(
        data_wait={"queue": 0.2, "read": 0.25, "decode": 0.01, "share": 0.5},
        restarts=[{"time": None, "cause": cause} for cause in causes],
    )
    shown = cardialign("status", "one", "--address", board.address, plain=True).out
    assert "queue 200 ms, read 250 ms, decode 10 ms" in shown
    assert "4, the last: asked for; before it: rank 1 was killed (2 times); node b is gone" in shown


@pytest.mark.parametrize(
    ("driven", "steps", "words"),
    [
        (False, 1, "interrupted, no driver holds it; the same command goes on"),
        (True, 1, "stalled, last step 2h00m ago"),
        (True, 0, "starting, no step so far"),
    ],
)
def test_a_run_that_makes_no_steps_is_not_called_running(
    cardialign: Command, board: Dashboard, job: str, tmp_path: Path, driven: bool, steps: int, words: str
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.resolved.json").write_text('{"training": {"steps": 100, "global_batch": 16}}')
    (run_dir / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n' * steps)
    (run_dir / "driver.lock").write_text("{}") if driven else None
    for path in run_dir.iterdir():
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    state = next(each for each in cardialign("status", run_dir, plain=True).out.splitlines() if each[:5] == "state")
    assert state.partition(" ")[2].strip() == words
    board.jobs[job]["metadata"]["run_dir"] = str(run_dir)
    told = cardialign("status", "one", "--address", board.address, plain=True).out.splitlines()
    assert any(each.startswith("run  ") and words in each for each in told) is (steps > 0)


@pytest.mark.parametrize(
    ("status", "exit_code", "log", "state", "why"),
    [
        ("PENDING", None, "", "queued", "Job has not started yet."),
        ("RUNNING", None, line(waits_for="nodes: asked: 4 workers"), "waiting", "for nodes: asked: 4 workers"),
        ("RUNNING", None, line(phase="stopping"), "stopping", "asked to stop at a checkpoint"),
        ("FAILED", 75, line(phase="stopped"), "stopped", "at the checkpoint of step 30 (75); submit it again"),
        ("STOPPED", None, line(phase="stopped"), "stopped", "at the checkpoint of step 30; submit it again"),
        ("FAILED", 1, "cardialign: no shards\n  remedy: give some\n", "failed", "no shards -> give some (exit code 1)"),
        ("FAILED", None, "", "failed", "The node died"),
        ("SUCCEEDED", 0, line(phase="finished"), "finished", None),
    ],
)
def test_every_end_has_its_word_and_its_cause(
    cardialign: Command, board: Dashboard, job: str,
    status: str, exit_code: int | None, log: str, state: str, why: str | None,
) -> None:  # fmt: skip
    board.logs[job] = log
    board.end(job, status, exit_code, {"PENDING": why, "FAILED": "The node died\nTraceback"}.get(status) or "")
    told = cardialign("status", "one", "--address", board.address)
    assert told.code == 0 and told.json["state"] == state
    assert told.json["why"] is None if why is None else told.json["why"].startswith(why)


def test_a_run_directory_that_is_here_is_read_itself(
    cardialign: Command, board: Dashboard, job: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints" / "step-00000050").mkdir(parents=True)
    (run_dir / "checkpoints" / "step-00000050" / "manifest.json").write_text("{}")
    os.utime(run_dir / "checkpoints" / "step-00000050", (time.time() - 90, time.time() - 90))
    (run_dir / "config.resolved.json").write_text('{"training": {"steps": 100, "global_batch": 16}}')
    rows = [{"step": 55, "loss": 2.0, "records_per_second": 32.0}, {"step": 60, "loss": 1.5}]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 61, "lo')
    for name in ("20261126-030000-1", "20261126-030500-2", "20261126-040000-1"):
        (run_dir / "logs" / name).mkdir(parents=True)
        (run_dir / "logs" / name / "rank-0.log").write_text(f"of {name}\n")
    (run_dir / "attempts.jsonl").write_text("".join(f'{{"attempt": 1, "time": {at}}}\n' for at in (100, 200, 300)))
    (run_dir / "deaths.jsonl").write_text('{"time": 190.0, "cause": "rank 1 on node-b was killed"}\n')
    board.jobs[job]["metadata"]["run_dir"] = str(run_dir)
    board.logs[job] += line(step=40, waits_for="the next step")
    assert cardialign("status", "one", "--address", board.address).json["state"] == "running", "it is at step 60 by now"
    for words in ([str(run_dir)], ["one", "--address", board.address]):
        run = cardialign("status", *words).json["run"]
        assert (run["step"], run["steps"], run["loss"], run["seen"]) == (60, 100, 1.5, "here")
        assert run["eta_seconds"] == (100 - 60) * 16 / 32.0
        assert run["last_checkpoint_step"] == 50 and 89 < run["checkpoint_age_seconds"] < 200
        causes = [restart["cause"] for restart in run["restarts"]]
        assert causes == ["rank 1 on node-b was killed", "the command was given again, or nothing was left behind"]
    newest = "of 20261126-040000-1\n"
    for words in ([run_dir], ["one", "--address", board.address]):
        assert cardialign("logs", *words, "--rank", "0", plain=True).out == newest
    assert "no log of rank 7: there are 0" in cardialign("logs", run_dir, "--rank", "7").json["problem"]


def test_logs_are_those_of_the_driver_or_of_a_worker_on_its_node(
    cardialign: Command, board: Dashboard, job: str
) -> None:
    assert cardialign("logs", "one", "--address", board.address, plain=True).out == "starting\na warning\n"
    board.helper = "rank 1 says so\n"
    assert cardialign("logs", "one", "--rank", "1", "--address", board.address, plain=True).out == board.helper
    helper = next(values for values in board.jobs.values() if "cardialign_helper_of" in values["metadata"])
    assert "/shared/runs/a/logs/*/rank-1.log" in helper["entrypoint"].replace("'", "")
    assert len(cardialign("list", "--all", "--address", board.address).json["jobs"]) == 1, "a helper is in no list"
    board.helper = ""
    assert (
        "has no log of rank 1" in cardialign("logs", "one", "--rank", "1", "--address", board.address).json["problem"]
    )


def test_following_prints_what_comes_once_and_ends_with_the_job(
    cardialign: Command, board: Dashboard, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cardialign.cluster.jobs import reading

    def passes(seconds: float) -> None:
        board.logs[job] += "more\n" + line()
        if board.logs[job].count("more") == 2:
            board.end(job, "SUCCEEDED", 0)

    monkeypatch.setattr(reading.time, "sleep", passes)
    answer = cardialign("logs", "one", "--follow", "--address", board.address, plain=True)
    assert answer.out == "starting\na warning\nmore\nmore\n"


def test_a_stop_asks_for_a_checkpoint_and_a_second_one_ends_the_driver(
    cardialign: Command, board: Dashboard, job: str
) -> None:
    first = cardialign("stop", "one", "--address", board.address).json
    assert "ends at a checkpoint" in first["done"] and ("POST", "/api/jobs/one-1/stop") in board.asked
    board.logs[job] += line(phase="stopping")
    asked = len(board.asked)
    second = cardialign("stop", "one", "--address", board.address).json
    assert "ended at once" in second["done"]
    assert ("POST", "/api/jobs/one-1/stop") not in board.asked[asked:]
    helper = next(values for values in board.jobs.values() if "cardialign_helper_of" in values["metadata"])
    assert "kill -TERM 4711" in helper["entrypoint"] and "CARDIALIGN_JOB=one-1" in helper["entrypoint"]
    board.end(job, "STOPPED")
    assert "has ended already" in cardialign("stop", "one", "--address", board.address).json["done"]


def test_a_job_of_somebody_else_is_seen_and_left_alone(
    cardialign: Command, board: Dashboard, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARDIALIGN_USER", "bob")
    assert cardialign("status", "one", "--address", board.address).json["user"] == "ada"
    refused = cardialign("stop", "one", "--address", board.address)
    assert refused.code == 2 and "is of ada (from laptop)" in refused.json["problem"]
    assert not [path for _, path in board.asked if path.endswith("/stop")]
    assert cardialign("stop", "one", "--any-user", "--address", board.address).code == 0
    other = {"cardialign": "1", "name": "one", "user": "eve"}
    board.answer(
        "POST", "/api/jobs/", json.dumps({"submission_id": "e", "entrypoint": "x", "metadata": other}).encode()
    )
    unclear = cardialign("status", "one", "--address", board.address)
    assert unclear.code == 1 and "belongs to jobs of ada, eve, none of them yours" in unclear.json["problem"]


def test_a_job_that_the_cluster_has_forgotten_is_submitted_again(cardialign: Command, board: Dashboard) -> None:
    answer = cardialign("status", "one", "--address", board.address)
    assert answer.code == 1 and "knows no job 'one'" in answer.json["problem"]
    assert "goes on from its newest checkpoint" in answer.json["remedy"]


def test_a_folder_without_a_run_is_told_as_that_where_no_cluster_is_named(
    cardialign: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for word in (tmp_path, tmp_path / "typo"):
        answer = cardialign("status", word)
        assert answer.code == 2 and f"{word} holds no run that this machine sees" in answer.json["problem"]
    assert "no cluster is named" in cardialign("status", "nightly").json["problem"]
    stop, logs = cardialign("stop", tmp_path), cardialign("logs", tmp_path)
    assert stop.code == logs.code == 2 and f"touch {tmp_path}/STOP" in stop.json["remedy"]
    assert "--rank 0" in logs.json["remedy"]
