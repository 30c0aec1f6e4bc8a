"""`deploy/slurm/pretrain.sbatch` on a real Slurm: one run over a deadline and a kill, and one on two nodes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.drills.patience import Patience
from cardialign.data_shards.files import read_json
from cardialign.pretrain.config import load_config
from cardialign.pretrain.run.files import ATTEMPTS, EXPORT, LOCK, METRICS, RESULT, STOP, WORKERS
from cardialign.pretrain.run.trace import read_trace
from tests.support.processes import run_ranks
from tests.support.readme import ROOT
from tests.support.slurm import Slurm, slurm
from tests.support.tiny_set import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.deployment, pytest.mark.timeout(10800)]
SCRIPT = ROOT / "deploy" / "slurm" / "pretrain.sbatch"
STEPS = 60
NO_RAY = "Ray was not started on all nodes"
"""The script's word for what is worth another try; Ray gives itself 30 s, which a busy machine may need."""


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


def attempts(run_dir: Path) -> int:
    return len((run_dir / ATTEMPTS).read_text().splitlines())


@pytest.fixture(scope="module")
def undisturbed(banked_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Step -> loss of two plain processes on the same set."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    config = load_config("cardialign-demo", [*SMALL, f"data.shards={banked_shards}"])
    run_ranks(2, train_undisturbed, config.resolved(), str(run_dir), deadline=600, init=False)
    assert sorted(losses(run_dir)) == list(range(1, STEPS + 1))
    return losses(run_dir)


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
        patience = Patience(seconds)
        while not until():
            assert self.state() not in ("FAILED", "CANCELLED", "TIMEOUT"), self.told()
            assert not patience.over(), self.told()
            time.sleep(0.2)

    def told(self) -> str:
        return (self.log.read_text()[-6000:] if self.log.exists() else "") + self.cluster.told()


def test_a_run_goes_on_after_its_deadline_and_after_a_kill_with_the_trace_of_an_undisturbed_one(
    banked_shards: Path, tmp_path: Path, shell: dict[str, str], undisturbed: dict[int, float]
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
    assert attempts(run_dir) == 3
    assert losses(run_dir) == undisturbed, "the loss trace is the same, bit for bit"


def test_two_nodes_are_one_ray_that_goes_on_after_a_node_lost_its_own_and_after_a_kill(
    banked_shards: Path, tmp_path: Path, shell: dict[str, str], undisturbed: dict[int, float]
) -> None:
    run_dir = tmp_path / "run"
    words = words_for(banked_shards, run_dir, SMALL, workers=2)
    of_another = {**shell, "RAY_ADDRESS": "10.77.0.9:6379"}  # sbatch hands on what the caller works with
    with slurm(of_another, nodes=2, cpus=1) as cluster:
        job = Job(cluster, tmp_path / "job.log", "--nodes=2", SCRIPT, *words)
        job.wait(lambda: len(losses(run_dir)) >= 12)
        hosts = [read_json(path) for path in sorted((run_dir / WORKERS).glob("rank-*.json"))]
        assert sorted(host["host"] for host in hosts if host) == ["node1", "node2"], job.told()
        second = cluster.hosts[1]
        second.run("kill", "-KILL", *second.run("pgrep", "-x", "raylet").split())
        job.wait(lambda: attempts(run_dir) >= 2 and len(losses(run_dir)) >= 24)
        starts = job.restarts()

        driver = read_json(run_dir / LOCK)
        assert driver is not None and driver["host"] == "node1"
        cluster.run("kill", "-KILL", driver["pid"])
        job.wait(lambda: job.state() == "COMPLETED")
        assert job.restarts() > starts and "something killed it" in job.log.read_text(), job.told()
        hosts = [read_json(path) for path in sorted((run_dir / WORKERS).glob("rank-*.json"))]
        assert sorted(host["host"] for host in hosts if host) == ["node1", "node2"], job.told()
    resumed = read_json(run_dir / RESULT)
    assert resumed is not None and resumed["resumed_from"] >= 10, "not from the beginning"
    assert losses(run_dir) == undisturbed, "the loss trace is the same, bit for bit"


def test_a_wrong_word_is_not_requeued(banked_shards: Path, tmp_path: Path, shell: dict[str, str]) -> None:
    words = words_for(banked_shards, tmp_path / "run", [*SMALL, "training.steps=minus-four"], workers=1)
    with slurm(shell, nodes=1, cpus=1) as cluster:
        wrong = Job(cluster, tmp_path / "wrong.log", SCRIPT, *words)
        patience = Patience(600)
        while wrong.state() in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED") and not patience.over():
            time.sleep(0.2)
        assert wrong.state() == "FAILED" and cluster.job(wrong.number)["ExitCode"] == "2:0", wrong.told()
        log = wrong.log.read_text()
        assert "minus-four" in log and wrong.restarts() == log.count(NO_RAY), log


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
