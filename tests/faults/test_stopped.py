"""A run over two sets that is asked to stop, on a real Ray with two workers, ends at a committed checkpoint."""

from __future__ import annotations

import json
import os
import signal
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
