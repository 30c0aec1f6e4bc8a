"""A Ray that cannot be had is told in a sentence; what a killed driver left behind goes with the next one."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cardialign.cluster.environment import session
from cardialign.data_shards.errors import UsageError, UserError
from tests.support.ray_cluster import ray_head


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "no-such-host.invalid:6379", "127.0.0.1:99999"):
        with pytest.raises(UserError) as raised, session.ray_session(1, address):
            pytest.fail("joined")
        assert f"no Ray cluster at '{address}'" in raised.value.problem and "--address" in raised.value.remedy
        assert "reached" in raised.value.problem
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://kube.example/ray", "redis://127.0.0.1:6379"])
def test_the_address_of_a_dashboard_is_told_from_one_that_a_driver_joins(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=f"--address '{address}' is no address that a driver joins") as raised:
        session.reach(address)
    assert "cardialign submit" in raised.value.remedy and "HOST:6379" in raised.value.remedy
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match="RAY_ADDRESS"):
        session.reach("auto")


def test_a_place_without_space_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session, "SCRATCH", tmp_path / "absent")
    with pytest.raises(UserError, match=r"a local Ray could not be started: .*No such file"), session._scratch():
        pytest.fail("made")
    full = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: full)
    error = session._no_local_ray("raylet died")
    assert "no space is left in" in error.problem and "/dev/shm" in error.problem and "--shm-size" in error.remedy


@pytest.mark.parametrize(
    ("failures", "starts"),
    [
        ([RuntimeError("The node with node name abc did not start within 30 s")], 2),
        ([RuntimeError("GCS did not start"), RuntimeError("GCS did not start")], 2),
        ([OSError(28, "No space left on device")], 1),
    ],
)
def test_a_local_ray_that_a_busy_machine_was_too_slow_for_is_started_once_more(
    failures: list[Exception], starts: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left, asked = list(failures), []

    def start(*words: object) -> None:
        asked.append(words)
        if left:
            raise left.pop(0)

    monkeypatch.setattr(session, "_start_once", start)
    if len(failures) < starts:
        session._start(1, {}, tmp_path)
    else:
        with pytest.raises(UserError, match="a local Ray could not be started"):
            session._start(1, {}, tmp_path)
    assert len(asked) == starts


def test_what_a_killed_driver_left_is_removed_and_what_a_living_one_uses_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "SCRATCH", tmp_path)
    for name in ("ray-killed", "ray-living", "ray-of-another-program"):
        (tmp_path / name / "r").mkdir(parents=True)
    (tmp_path / "ray-killed" / session.OWNER).touch()
    descriptor = os.open(tmp_path / "ray-living" / session.OWNER, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with session._scratch() as folder:
        assert folder.parent.stat().st_mode & 0o077 == 0, "no other user reads or writes there"
        there = sorted(path.name for path in tmp_path.iterdir())
        assert there == sorted([folder.parent.name, "ray-living", "ray-of-another-program"])
        with session._scratch() as second:
            assert folder.parent.is_dir() and second != folder
    os.close(descriptor)
    assert not folder.parent.exists()


def test_logs_of_a_local_ray_outlive_its_failure(tmp_path: Path) -> None:
    logs = tmp_path / "r" / "session_2026-01-01_00-00-00_000000_1" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.err").write_text("no space left")
    session._keep(tmp_path / "r", tmp_path / "run" / "logs" / "ray")
    assert not (tmp_path / "run").exists(), "a start that was refused leaves nothing"
    (tmp_path / "run" / "logs").mkdir(parents=True)
    session._keep(tmp_path / "r", tmp_path / "run" / "logs" / "ray")
    assert (tmp_path / "run" / "logs" / "ray" / "raylet.err").read_text() == "no space left"


def test_a_limit_of_open_files_that_no_local_ray_fits_into_is_judged_before_it_starts() -> None:
    program = (
        "import resource\n"
        "from cardialign.cluster.environment.session import check_open_files\n"
        "from cardialign.data_shards.errors import UserError\n"
        "for hard, workers in ((1024, 64), (1024, 120), (256, 2), (127, 4), (64, 1)):\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 64), hard))\n"
        "    try: print(hard, workers, check_open_files(workers))\n"
        "    except UserError as error: print(error.problem, '/', error.remedy)\n"
    )
    words = [sys.executable, "-c", program]
    said = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    assert [said[0], said[2]] == ["1024 64 None", "256 2 None"]
    for line, workers, hard in ((said[1], 120, 1024), (said[3], 4, 127), (said[4], 1, 64)):
        assert line.startswith(
            f"a local Ray with {workers} workers wants {96 + 8 * workers} open files, the limit here"
        )
        assert f"limit here is {hard} / raise it (`ulimit -n 65536`" in line


def listening() -> set[tuple[str, str, int]]:
    """Program, address and port of every socket of this process and those below it that other machines reach."""
    import psutil

    return {
        (process.name(), each.laddr.ip, each.laddr.port)
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
        for each in process.net_connections(kind="inet")
        if each.status == psutil.CONN_LISTEN and each.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    }


def niceness() -> int:
    return os.nice(0)


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_listens_on_the_loopback_address_only_and_works_at_our_priority() -> None:
    import psutil
    import ray

    before = listening()  # of what other tests have left in this process
    with session.ray_session(1, None):
        wide = listening() - before
        assert len(psutil.Process().children(recursive=True)) > 2
        assert ray.get(ray.remote(niceness).remote(), timeout=60) == os.nice(0), "other work does not starve ours"
    assert wide == set()


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_hears_no_signal_of_our_group_and_its_end_is_seen() -> None:
    import psutil

    before = {child.pid for child in psutil.Process().children()}
    with session.ray_session(1, None):
        children = [child for child in psutil.Process().children() if child.pid not in before]
        assert len(children) > 2 and all(os.getpgid(child.pid) != os.getpgid(0) for child in children)
        assert session.ended_processes() == []
        [control] = [child for child in children if child.name() == "gcs_server"]
        control.terminate()
        until = time.monotonic() + 20
        while not session.ended_processes() and time.monotonic() < until:
            time.sleep(0.1)
        assert session.ended_processes() == ["gcs_server"]
    assert session.ended_processes() == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.deployment
def test_one_process_joins_a_cluster_of_another_authentication_between_two_local_rays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    for name in session.AUTHENTICATION:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    seen = []
    with ray_head(tmp_path, {**os.environ, "RAY_AUTH_MODE": "disabled"}, cpus=1) as address:
        for mode, where in (("", None), ("disabled", address), ("", None)):
            with monkeypatch.context() as chosen:
                if mode:
                    chosen.setenv("RAY_AUTH_MODE", mode)
                with session.ray_session(1, where):
                    seen.append(ray.get(ray.remote(os.getenv).remote("RAY_AUTH_MODE"), timeout=60))
                assert os.environ.get("RAY_AUTH_MODE", "") == mode
    assert seen == ["token", "disabled", "token"]
    assert not (tmp_path / "home").exists(), "a local Ray leaves no token behind"


def test_a_token_is_for_its_owner_and_what_the_user_has_chosen_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in session.AUTHENTICATION:
        monkeypatch.delenv(name, raising=False)
    first, second = (session._own_token(tmp_path)["RAY_AUTH_TOKEN_PATH"] for _ in range(2))
    assert first == second and Path(first).stat().st_mode & 0o077 == 0 and len(Path(first).read_text()) == 64
    for name in session.AUTHENTICATION:
        with monkeypatch.context() as chosen:
            chosen.setenv(name, "theirs")
            assert session._own_token(tmp_path) == {}
