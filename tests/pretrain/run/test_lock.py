"""A run directory has one driver at a time, and a dead one holds nothing."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.pretrain.__main__ import main
from cardialign.pretrain.run import lock
from cardialign.pretrain.run.files import LOCK
from cardialign.pretrain.run.lock import locked_run

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from cardialign.pretrain.run.lock import locked_run
with locked_run(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_with_the_process_of_the_first_and_a_killed_one_blocks_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, run_dir], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdin and first.stdout
    try:
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(
                UsageError, match=f"{run_dir} is in use by process {first.pid} on {platform.node()} since "
            ) as caught,
            locked_run(run_dir),
        ):
            raise AssertionError("held twice")
        assert "SIGTERM" in caught.value.remedy
        assert main(["--recipe", "cardialign-tiny", "--run-dir", str(run_dir)]) == 2
        assert f"in use by process {first.pid}" in capsys.readouterr().err
    finally:
        first.kill()
        first.communicate()
    assert (run_dir / LOCK).exists(), "it was killed"
    with locked_run(run_dir):
        assert str(os.getpid()) in (run_dir / LOCK).read_text()
    assert run_dir.is_dir() and not (run_dir / LOCK).exists()


def test_what_was_made_for_a_run_that_did_not_begin_goes_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data"), locked_run(tmp_path / "run"):
        raise UserError("no data")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run cannot be written"), locked_run(tmp_path / "file" / "run"):
        pass


def test_a_lock_file_that_its_holder_has_just_removed_is_not_taken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def flock_late(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / LOCK).unlink()

    monkeypatch.setattr(fcntl, "flock", flock_late)
    with locked_run(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
        with pytest.raises(UsageError), locked_run(tmp_path):
            raise AssertionError("held twice")


ELSEWHERE = """
import fcntl, sys
from pathlib import Path
from cardialign.pretrain.run import lock
lock._boot = lambda: "another machine"
lock.BEAT_SECONDS = 0.1
if sys.argv[2] == "none":
    def flock(descriptor, how):
        raise OSError(38, "Function not implemented")
    fcntl.flock = flock
with lock.locked_run(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("locks", ["none", "of its own host alone"])
def test_a_holder_on_another_host_is_believed_while_its_note_beats_where_locks_do_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, locks: str
) -> None:
    def flock(descriptor: int, how: int) -> None:
        if locks == "none":
            raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 2.0)
    first = subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, tmp_path, locks], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert first.stdin and first.stdout
    try:
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(UsageError, match=f"is in use by process {first.pid} on {platform.node()}"),
            locked_run(tmp_path),
        ):
            raise AssertionError("held twice")
        assert ("action=no-lock" in caplog.text) == (locks == "none")
        assert str(first.pid) in (tmp_path / LOCK).read_text(), "who is refused leaves the note alone"
    finally:
        first.kill()
        first.communicate()
    asked = time.monotonic()
    with locked_run(tmp_path):
        assert time.monotonic() - asked >= 2.0
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert not (tmp_path / LOCK).exists()


def test_where_nothing_locks_two_that_start_at_once_are_not_both_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    def begun_at_once(wait: float) -> None:
        monkeypatch.setattr(time, "sleep", sleep)
        sleep(wait)
        (tmp_path / LOCK).write_text(json.dumps({"pid": 4711, "host": "b", "since": "now", "boot": "b", "beat": 0}))

    sleep = time.sleep
    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(time, "sleep", begun_at_once)
    with pytest.raises(UsageError, match="process 4711 on b"), locked_run(tmp_path):
        raise AssertionError("held twice")
    assert "4711" in (tmp_path / LOCK).read_text()


def test_a_holder_that_was_believed_dead_does_not_take_its_successors_lock_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    with locked_run(tmp_path):
        (tmp_path / LOCK).write_text(json.dumps({"pid": 4711, "host": "b", "since": "now", "boot": "b", "beat": 0}))
        time.sleep(0.3)
    assert "action=lost-lease" in caplog.text and "process 4711 on b" in caplog.text
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == 4711


def test_a_folder_where_the_lock_is_wanted_is_to_be_moved_away(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(UserError, match=LOCK) as raised, locked_run(tmp_path):
        pass
    assert "move away" in raised.value.remedy and "free space" not in raised.value.remedy
