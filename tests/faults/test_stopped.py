"""A run over two sets that is asked to stop, on a real Ray with two workers, ends at a committed checkpoint;
one that is asked while its Ray starts says so, and is no running one in MLflow."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cardialign.cluster.main import main
from tests.support.tiny_set import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.timeout(360)
def test_sigterm_to_the_process_and_to_its_group_stops_at_a_committed_checkpoint_with_code_75(
    two_banked_sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "--recipe", "cardialign-demo", "--run-dir", str(tmp_path / "run"), "--json"]
    words += ["--mixture", f"{two_banked_sets[0]}=0.7", "--mixture", f"{two_banked_sets[1]}=0.3"]
    words += [part for assignment in SMALL for part in ("--set", assignment)]
    words += [
        "--steps",
        "100000",
        "--tracking-optional",
        "--tracking-uri",
        f"sqlite:///{tmp_path / 'absent' / 'mlflow.db'}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "cardialign", *words], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        trace = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (trace.is_file() and trace.stat().st_size):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
        assert main(words) == 2, "the run directory has a driver"
        refusal = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        assert f"{tmp_path / 'run'} is in use by process {process.pid} on " in refusal["problem"]
        process.send_signal(signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)  # as `timeout` does
        printed, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    answer = json.loads(printed.strip().splitlines()[-1])
    assert process.returncode == 75 and answer["exit_code"] == 75 and answer["stopped"] is True
    assert Path(answer["checkpoint"]).name == f"step-{answer['steps']:08d}" and Path(answer["checkpoint"]).is_dir()
    assert answer["tracked"] is False, "no MLflow store could be opened, and the run went on"


@pytest.mark.timeout(360)
def test_sigterm_while_ray_starts_is_said_and_the_run_is_killed_in_mlflow(
    two_banked_sets: tuple[Path, Path], tmp_path: Path
) -> None:
    words = ["pretrain", "--recipe", "cardialign-demo", "--run-dir", str(tmp_path / "run"), "--workers", "1"]
    words += ["--shards", str(two_banked_sets[0]), "--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}", "--json"]
    words += [part for assignment in SMALL for part in ("--set", assignment)]
    process = subprocess.Popen(
        [sys.executable, "-m", "cardialign", *words], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        while process.poll() is None and not _has_started_ray(process.pid):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    answer = json.loads(printed.strip().splitlines()[-1])
    assert (process.returncode, answer["exit_code"], answer["problem"]) == (143, 143, "interrupted by SIGTERM")
    assert sqlite3.connect(tmp_path / "mlflow.db").execute("select status from runs").fetchall() == [("KILLED",)]


def _has_started_ray(pid: int) -> bool:
    """Its control service runs, so that Ray is between its first process and its last."""
    import psutil

    try:
        return any(child.name() == "gcs_server" for child in psutil.Process(pid).children())
    except psutil.Error:
        return False
