"""What kills a worker group is told as what happened, with the logs that exist and a way out."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import ray
import ray.exceptions
from ray.train import RunConfig
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from cardialign.cluster.runs.diagnosis import told
from cardialign.cluster.runs.group import Deaths
from cardialign.cluster.watching.state import run_state
from cardialign.data_shards.errors import DataError

LOGS = Path("/run/logs")
TRACEBACK = 'Traceback (most recent call last):\n  File "loop.py", line 1, in steps\n'


def own(error: Exception) -> UserExceptionWithTraceback:
    """An exception of the training loop, as Ray hands it over."""
    return UserExceptionWithTraceback(error, f"{TRACEBACK}{type(error).__name__}: {error}")


DEATHS = [
    (ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."), "signal 9", "memory"),
    (ray.exceptions.RayActorError(error_msg="The actor died unexpectedly."), "signal 9", "memory"),
    (
        WorkerHealthCheckFailedError("A worker health check failed.", ray.exceptions.ActorDiedError()),
        "out-of-memory",
        "memory",
    ),
    (ray.exceptions.NodeDiedError("node has been marked dead"), "its node died", "ray status"),
    (own(OSError(28, "No space left on device")), "disk is full", "free space"),
    (own(RuntimeError("The server socket has failed to bind. EADDRINUSE")), "port was taken", "start again"),
    (own(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")), "memory of its GPU", "micro_batch"),
    (own(RuntimeError("[gloo/tcp/pair.cc] Connection closed by peer")), "connection to another rank", "network"),
    (own(ZeroDivisionError("division by zero")), "ZeroDivisionError: division by zero", "see what the worker wrote"),
]


@pytest.mark.parametrize(("death", "happened", "remedy"), DEATHS, ids=[happened for _, happened, _ in DEATHS])
def test_a_death_is_told_with_its_rank_its_cause_and_its_log(death: Exception, happened: str, remedy: str) -> None:
    error = told(WorkerGroupError("...", {1: death}), LOGS)
    assert error.problem.startswith("training failed on rank 1: ") and happened in error.problem
    assert remedy in error.remedy and "rank-1.log in /run/logs" in error.remedy and "newest committed" in error.remedy
    assert "defect" not in str(error)


def test_what_a_worker_or_the_controller_said_to_the_user_is_what_the_user_reads() -> None:
    said = DataError("shard 3 is torn", "verify")
    assert told(WorkerGroupError("...", {0: own(said)}), LOGS) is said
    assert told(ControllerError(said), LOGS) is said


def test_a_failure_of_the_controller_has_a_cause_too() -> None:
    error = told(ControllerError(RuntimeError("[Errno 98] Address already in use")), LOGS)
    assert error.problem.startswith("training failed: a network port was taken") and "/run/logs" in error.remedy


def test_what_ended_a_group_is_noted_in_one_line_for_who_asks_about_the_restart(tmp_path: Path) -> None:
    asked = RunConfig(name="any", storage_path=str(tmp_path / "ray"), callbacks=[Deaths(tmp_path)])
    (sent,) = ray.cloudpickle.loads(ray.cloudpickle.dumps(asked.callbacks))  # it goes to Ray's controller
    killed = WorkerHealthCheckFailedError("A worker health check failed.", ray.exceptions.ActorDiedError())
    attempts = tmp_path / "attempts.jsonl"
    attempts.write_text(f'{{"time": {time.time() - 9}}}\n')
    sent.after_exception(None, {1: killed})
    sent.after_exception(None, {0: own(RuntimeError(f"\x1b[2J{'x' * 9000}"))})
    first, second = [json.loads(line) for line in (tmp_path / "deaths.jsonl").read_text().splitlines()]
    assert first["cause"].startswith("rank 1: its process was killed by signal 9") and first["time"] > 0
    assert second["cause"].startswith("rank 0: RuntimeError: \\x1b[2Jxxx") and len(second["cause"]) <= 400
    with attempts.open("a") as file:
        file.write(f'{{"time": {second["time"] + 9}}}\n')
    (restart,) = run_state(tmp_path).restarts
    assert restart.cause == second["cause"]
