"""`deploy/slurm/pretrain.sbatch` on a real Slurm: one run over a deadline and a kill, and one on two nodes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.data_shards.files import read_json
from cardialign.pretrain.config import load_config
from cardialign.pretrain.run.files import ATTEMPTS, EXPORT, LOCK, METRICS, RESULT, STOP, WORKERS
from cardialign.pretrain.run.trace import read_trace
from tests.support.processes import run_ranks
from tests.support.readme import ROOT
from tests.support.slurm import Slurm, slurm
from tests.support.tiny_set import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.deployment, pytest.mark.timeout(2400)]
SCRIPT = ROOT / "deploy" / "slurm" / "pretrain.sbatch"
STEPS = 60


def train_undisturbed(rank: int, world: int, values: dict[str, Any], run_dir: str) -> None:
    """The same loop without Slurm and Ray: plain processes over gloo."""
    from cardialign.pretrain.config import parse_config
    from cardialign.pretrain.run.observer import NullObserver
    from cardialign.pretrain.training.loop import train

    train(parse_config(values), Path(run_dir), NullObserver())


def losses(run_dir: Path) -> dict[int, float]:
    if not (run_dir / METRICS).is_file():
        return {}
    return {int(line["step"]): float(line["loss"]) for line in read_trace(run_dir)}


def words_for(shards: Path, run_dir: Path, settings: list[str], workers: int) -> list[str]:
    words = ["--recipe", "cardialign-demo", "--shards", str(shards), "--run-dir", str(run_dir)]
    words += ["--workers", str(workers), "--device", "cpu", "--tracking-uri", f"sqlite:///{run_dir.parent}/mlflow.db"]
    return words + [part for setting in settings for part in ("--set", setting)]


class Job:
    """A submitted job, and what it has said."""

    def __init__(self, cluster: Slurm, log: Path, *words: object) -> None:
        self.cluster, self.log = cluster, log
        self.number = cluster.run("sbatch", "--parsable", f"--output={log}", "--time=30", *words).strip()

    def state(self) -> str:
        return self.cluster.job(self.number)["JobState"]

    def restarts(self) -> int:
        return int(self.cluster.job(self.number)["Restarts"])

    def wait(self, until: Callable[[], bool], seconds: float = 1200) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert self.state() not in ("FAILED", "CANCELLED", "TIMEOUT"), self.told()
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.2)

    def told(self) -> str:
        return (self.log.read_text()[-6000:] if self.log.exists() else "") + self.cluster.told()


def test_a_run_goes_on_after_its_deadline_and_after_a_kill_with_the_trace_of_an_undisturbed_one(
    banked_shards: Path, tmp_path: Path, shell: dict[str, str]
) -> None:
    run_dir = tmp_path / "run"
    words = words_for(banked_shards, run_dir, SMALL, workers=2)
    with slurm(shell, nodes=1, cpus=2) as cluster:
        job = Job(cluster, tmp_path / "job.log", SCRIPT, *words)
        job.wait(lambda: len(losses(run_dir)) >= 12)
        starts = job.restarts()
        cluster.run("scancel", "--signal=TERM", "--batch", job.number)  # what --signal=B:TERM@300 sends
        job.wait(lambda: job.restarts() > starts)
        stopped = read_json(run_dir / RESULT)
        assert stopped is not None and stopped["stopped"] and 12 <= stopped["steps"] < STEPS

        job.wait(lambda: len(losses(run_dir)) >= stopped["steps"] + 6)
        driver = read_json(run_dir / LOCK)
        assert driver is not None and driver["host"] == "node1"
        cluster.run("kill", "-KILL", driver["pid"])
        job.wait(lambda: job.state() == "COMPLETED")
        assert job.restarts() >= starts + 2 and cluster.job(job.number)["ExitCode"] == "0:0"
    log = job.log.read_text()
    assert "the run stopped at a committed checkpoint" in log and "something killed it" in log, log
    assert (run_dir / EXPORT / "model.safetensors").is_file() and not (run_dir / STOP).exists()
    resumed = read_json(run_dir / RESULT)
    assert resumed is not None and resumed["resumed_from"] >= stopped["steps"], "not from the beginning"
    assert len((run_dir / ATTEMPTS).read_text().splitlines()) == 3

    config = load_config("cardialign-demo", [*SMALL, f"data.shards={banked_shards}"])
    run_ranks(2, train_undisturbed, config.resolved(), str(tmp_path / "undisturbed"), deadline=600, init=False)
    assert sorted(losses(run_dir)) == list(range(1, STEPS + 1))
    assert losses(run_dir) == losses(tmp_path / "undisturbed"), "the loss trace is the same, bit for bit"


def test_two_nodes_are_one_ray_and_a_wrong_word_is_not_requeued(
    banked_shards: Path, tmp_path: Path, shell: dict[str, str]
) -> None:
    run_dir = tmp_path / "run"
    words = words_for(banked_shards, run_dir, [*SMALL, "training.steps=4", "model.depth=1"], workers=2)
    with slurm(shell, nodes=2, cpus=1) as cluster:
        job = Job(cluster, tmp_path / "job.log", "--nodes=2", SCRIPT, *words)
        job.wait(lambda: job.state() == "COMPLETED")
        wrong = Job(cluster, tmp_path / "wrong.log", SCRIPT, *words[:-1], "training.steps=minus-four")
        deadline = time.monotonic() + 300
        while wrong.state() in ("PENDING", "RUNNING", "COMPLETING") and time.monotonic() < deadline:
            time.sleep(0.2)
        assert wrong.state() == "FAILED" and cluster.job(wrong.number)["ExitCode"] == "2:0", wrong.told()
        assert cluster.job(wrong.number)["Restarts"] == "0" and "minus-four" in wrong.log.read_text()
    hosts = [read_json(path) for path in sorted((run_dir / WORKERS).glob("rank-*.json"))]
    assert sorted(host["host"] for host in hosts if host) == ["node1", "node2"], job.told()
    assert sorted(losses(run_dir)) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--recipe", "r"], "--run-dir is missing"),
        (["--run-dir", "d", "--address", "auto"], "--address is chosen here"),
        ([], "--run-dir is missing"),
    ],
)
def test_what_the_script_cannot_use_is_refused(words: list[str], told: str, shell: dict[str, str]) -> None:
    job = {**shell, "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "1"}
    done = subprocess.run(["bash", SCRIPT, *words], env=job, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and told in done.stderr
