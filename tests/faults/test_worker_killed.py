"""A worker that dies, a run that is asked to stop (both over a mixture of two sets), a run that collapses.

Each ends as promised, on a real Ray with two workers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.main import main
from cardialign.cluster.runs.driver import train_on_ray
from cardialign.data_shards.files import read_json
from cardialign.pretrain.config import RunConfig, load_config
from cardialign.pretrain.run.files import ATTEMPTS, WORKERS
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.alarms import CollapseError
from tests.support.processes import run_ranks
from tests.support.tiny_set import SMALL

pytestmark = pytest.mark.ray


def config_for(*data: str) -> RunConfig:
    return load_config("cardialign-demo", [*SMALL, *data])


def train_undisturbed(rank: int, world: int, values: dict[str, Any], run_dir: str) -> None:
    """The same loop without Ray: two plain processes over gloo."""
    from cardialign.pretrain.config import parse_config
    from cardialign.pretrain.run.observer import NullObserver
    from cardialign.pretrain.training.loop import train

    train(parse_config(values), Path(run_dir), NullObserver())


def losses(run_dir: Path) -> dict[int, float]:
    return {int(line["step"]): float(line["loss"]) for line in read_trace(run_dir)}


def starts(run_dir: Path) -> int:
    return len((run_dir / ATTEMPTS).read_text().splitlines())


@pytest.mark.timeout(240)
def test_run_whose_worker_is_killed_finishes_by_itself_with_the_same_loss_trace(
    two_banked_sets: tuple[Path, Path], tmp_path: Path
) -> None:
    large, small = two_banked_sets
    config = config_for(f"data.mixture=[{{shards: {large}, weight: 3}}, {{shards: {small}}}]")
    killed: list[int] = []

    def kill_one_worker(line: dict[str, Any]) -> None:
        if line["step"] >= 12 and not killed:
            note = read_json(tmp_path / "disturbed" / WORKERS / "rank-1.json")
            assert note is not None
            os.kill(note["pid"], signal.SIGKILL)
            killed.append(note["pid"])

    result = train_on_ray(config, tmp_path / "disturbed", workers=2, on_step=kill_one_worker)
    assert killed and result.restarts == 1 and not result.stopped
    assert result.steps == 60 and starts(tmp_path / "disturbed") == 2
    resumed = read_json(tmp_path / "disturbed" / "result.json")
    assert resumed is not None and resumed["resumed_from"] >= 10, "it went on from a checkpoint, not from the beginning"

    run_ranks(2, train_undisturbed, config.resolved(), str(tmp_path / "undisturbed"), deadline=120, init=False)
    disturbed, undisturbed = losses(tmp_path / "disturbed"), losses(tmp_path / "undisturbed")
    assert sorted(disturbed) == list(range(1, 61))
    assert disturbed == undisturbed, "the loss trace is the same, bit for bit"


@pytest.mark.timeout(180)
def test_sigterm_stops_at_a_committed_checkpoint_with_code_75(
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
    process = subprocess.Popen([sys.executable, "-m", "cardialign", *words], stdout=subprocess.PIPE, text=True)
    try:
        trace = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (trace.is_file() and trace.stat().st_size):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
        assert main(words) == 2, "the run directory has a driver"
        refusal = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        assert f"{tmp_path / 'run'} is in use by process {process.pid} on " in refusal["problem"]
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    answer = json.loads(printed.strip().splitlines()[-1])
    assert process.returncode == 75 and answer["exit_code"] == 75 and answer["stopped"] is True
    assert Path(answer["checkpoint"]).name == f"step-{answer['steps']:08d}" and Path(answer["checkpoint"]).is_dir()
    assert answer["tracked"] is False, "no MLflow store could be opened, and the run went on"


@pytest.mark.timeout(180)
def test_collapse_ends_the_run_with_its_own_message_and_without_another_try(
    banked_shards: Path, tmp_path: Path
) -> None:
    collapse = [
        "collapse.enabled=true",
        "collapse.min_rank=1000",
        "collapse.patience_steps=5",
        "schedule.warmup_steps=1",
    ]
    config = config_for(f"data.shards={banked_shards}", *collapse)
    with pytest.raises(CollapseError) as raised:
        train_on_ray(config, tmp_path / "run", workers=2)
    assert "effective rank" in raised.value.problem and "warm-up" in raised.value.remedy
    assert starts(tmp_path / "run") == 1
