"""A run that hangs can be ended: SIGTERM where nobody can write a checkpoint, a second SIGTERM at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.runs.driver import (
    SAME_SIGNAL_SECONDS,
    _Asked,
    _lost_cluster,
    _newest_logs,
    _starts,
    _watch,
)
from cardialign.cluster.runs.failure import StoppedError
from cardialign.cluster.runs.fit import Fit
from cardialign.cluster.runs.waiting import Watch
from cardialign.data_shards.errors import STOPPED, UserError
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import ATTEMPTS, STOP


class NeverEnds:
    """A trainer whose `fit` hangs."""

    def __init__(self) -> None:
        self.end = threading.Event()

    def fit(self) -> None:
        self.end.wait(60)


@pytest.fixture
def hanging() -> Iterator[Fit]:
    trainer: Any = NeverEnds()
    fit = Fit(trainer)
    fit.start()
    yield fit
    trainer.end.set()
    fit.join()


def watch_of(run_dir: Path) -> Watch:
    return Watch(run_dir, {"CPU": 2.0}, 2, 600.0, lambda: ({}, {"CPU": 2.0}))


def send_soon(*signals: int) -> None:
    def send() -> None:
        for number in signals:
            time.sleep(0.4)
            os.kill(os.getpid(), number)

    threading.Thread(target=send).start()


def test_sigterm_ends_a_run_that_waits_for_resources(tmp_path: Path, hanging: Fit) -> None:
    asked, started = _Asked(tmp_path), time.monotonic()
    with pytest.raises(StoppedError) as raised, asked.listening():
        send_soon(signal.SIGTERM)
        _watch(hanging, watch_of(tmp_path), asked, None)
    assert time.monotonic() - started < 5 and raised.value.exit_code == STOPPED
    assert "while waiting for resources: 2 CPUs wanted, 0 free of 2" in raised.value.problem
    assert "run the same command again" in raised.value.remedy
    assert (tmp_path / STOP).exists()


def test_a_second_sigterm_ends_a_run_at_once_whatever_it_does(tmp_path: Path, hanging: Fit) -> None:
    asked, started = _Asked(tmp_path), time.monotonic()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match="second SIGTERM"), asked.listening():
        send_soon(signal.SIGTERM, signal.SIGTERM)
        hanging.join()
    assert time.monotonic() - started < 5
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_comes_twice_in_a_moment_is_one(tmp_path: Path) -> None:
    asked = _Asked(tmp_path)
    for _ in range(3):
        asked.on_signal(signal.SIGTERM, None)
    assert asked.stop
    time.sleep(2 * SAME_SIGNAL_SECONDS)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match="second SIGTERM"):
        asked.on_signal(signal.SIGTERM, None)
    signal.signal(signal.SIGTERM, before)


def test_ctrl_c_ends_a_run_that_hangs(tmp_path: Path, hanging: Fit) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            send_soon(signal.SIGINT)
            _watch(hanging, watch_of(tmp_path), _Asked(tmp_path), None)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_stop_that_cannot_be_written_down_holds_all_the_same(tmp_path: Path) -> None:
    asked = _Asked(tmp_path / "a disk that is gone")
    asked.on_signal(signal.SIGTERM, None)
    assert asked.stop


def test_a_driver_whose_run_was_taken_over_ends(tmp_path: Path, hanging: Fit) -> None:
    mine = fence.take_start(tmp_path)
    fence.take_start(tmp_path)  # as another driver would
    fence._held[tmp_path] = mine
    with pytest.raises(fence.FencedOutError):
        _watch(hanging, watch_of(tmp_path), _Asked(tmp_path), None)


def test_what_dies_with_the_head_of_its_cluster_is_told_as_that(tmp_path: Path) -> None:
    """Ray says of the controller what it says of a process that the machine has killed for its memory."""

    class Dies:
        def fit(self) -> None:
            raise RuntimeError("ActorDiedError: The actor died unexpectedly before finishing this task: SIGKILL")

    def told(head: str | None) -> UserError:
        fit = Fit(Dies(), head)
        fit.start()
        with pytest.raises(UserError) as raised:
            _watch(fit, watch_of(tmp_path), _Asked(tmp_path), None)
        return raised.value

    with socket.create_server(("127.0.0.1", 0)) as listening:
        head = f"127.0.0.1:{listening.getsockname()[1]}"
        assert "killed by signal 9" in told(head).problem
    lost = told(head)
    assert lost.problem.startswith("the Ray cluster was lost: ") and head in lost.problem
    assert "head node" in lost.remedy and "run the same command again" in lost.remedy
    assert "killed by signal 9" in told(None).problem, "a local Ray is looked at by its processes"


def test_what_the_machine_does_to_the_driver_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"attempt\.json cannot be used: No space left on device"):
        with _lost_cluster(tmp_path):
            raise OSError(28, "No space left on device", str(tmp_path / "attempt.json"))
    with pytest.raises(UserError, match="the Ray cluster was lost: the head is gone"), _lost_cluster(tmp_path):
        raise ConnectionError("the head is gone")
    with pytest.raises(ZeroDivisionError), _lost_cluster(tmp_path):
        raise ZeroDivisionError  # a defect of ours stays one


def test_starts_are_counted_whatever_a_crash_left_in_their_list(tmp_path: Path) -> None:
    assert _starts(tmp_path) == 0
    (tmp_path / ATTEMPTS).write_bytes(b'{"started": 1}\n\xff\xfe\0\n{"started": 2}\n')
    assert _starts(tmp_path) == 3


def test_the_logs_that_an_error_names_are_those_of_the_last_group(tmp_path: Path) -> None:
    assert _newest_logs(tmp_path) == tmp_path / "logs"
    for group in ("20260101-000000-1", "20260102-000000-1", "20260102-000000-2", "ray-abcdefgh.0"):
        (tmp_path / "logs" / group).mkdir(parents=True)
        if not group.startswith("ray"):
            (tmp_path / "logs" / group / "rank-0.log").touch()
    assert _newest_logs(tmp_path) == tmp_path / "logs" / "20260102-000000-2"
