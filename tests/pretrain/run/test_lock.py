"""A run directory has one driver at a time, and a dead one holds nothing."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.pretrain.__main__ import main
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
    lock = fcntl.flock

    def flock_late(descriptor: int, how: int) -> None:
        lock(descriptor, how)
        monkeypatch.setattr(fcntl, "flock", lock)
        (tmp_path / LOCK).unlink()

    monkeypatch.setattr(fcntl, "flock", flock_late)
    with locked_run(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
        with pytest.raises(UsageError), locked_run(tmp_path):
            raise AssertionError("held twice")


def test_a_filesystem_without_locks_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked_run(tmp_path):
        assert "action=no-lock" in caplog.text


def test_a_folder_where_the_lock_is_wanted_is_to_be_moved_away(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(UserError, match=LOCK) as raised, locked_run(tmp_path):
        pass
    assert "move away" in raised.value.remedy and "free space" not in raised.value.remedy
