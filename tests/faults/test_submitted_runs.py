"""Submitted runs on a real cluster: the head dies and comes again, two users share it, a run waits for its turn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cardialign.cluster.drills.patience import Patience
from tests.support.ray_cluster import ray_with_dashboard

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.deployment, pytest.mark.timeout(10800)]

SECRET = "hunter2-is-no-password"
SECRETS = {
    "HF_TOKEN": SECRET,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "MLFLOW_TRACKING_PASSWORD": SECRET,
    "CARDIALIGN_SALT": SECRET,
    "HTTPS_PROXY": f"http://me:{SECRET}@proxy:3128",
    "NO_PROXY": "127.0.0.1,localhost",
    "CARDIALIGN_PASS_ENV": "AWS_*",
}
STEPS = 80


@dataclass
class Shell:
    """A user's terminal: commands of ours against one cluster."""

    environment: dict[str, str]

    def __call__(self, *words: object, code: int = 0) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "cardialign", *map(str, words), "--json"],
            env=self.environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def submit(self, name: str, run_dir: Path, shards: Path, *more: str) -> str:
        words = ["pretrain", "--recipe", "simclr-tiny", "--shards", str(shards), "--run-dir", str(run_dir)]
        words += ["--workers", "1", "--steps", str(STEPS), *more, *_settings()]
        whole = [sys.executable, "-m", "cardialign", "submit", "--json", "--name", name, "--", *words]
        done = subprocess.run(whole, env=self.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return str(json.loads(done.stdout.splitlines()[-1])["job"])

    def until(self, name: str, holds: Callable[[dict[str, Any]], bool], seconds: float = 500) -> dict[str, Any]:
        """The status of a job once it `holds`."""
        patience = Patience(seconds)
        while True:
            told = self("status", name)
            if holds(told):
                return told
            assert not patience.over(), told
            time.sleep(1)


def _settings() -> list[str]:
    """A run of seconds that commits every tenth step."""
    small = ["training.global_batch=4", "encoder.depth=1", "training.checkpoint_every=10", "training.log_every=5"]
    small += ["collapse.enabled=false", "data.threads=1"]
    return [part for assignment in small for part in ("--set", assignment)]


def trace(run_dir: Path) -> list[tuple[int, float, str]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["digest"]) for row in rows]


@pytest.fixture
def nodes(tmp_path: Path) -> dict[str, str]:
    """The environment of a cluster with a token of its own, and of its users; both hold secrets."""
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("0123456789abcdef" * 4)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    return {
        **plain, **SECRETS, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def test_a_head_that_dies_and_comes_again_costs_a_submitted_run_nothing_but_time(
    plain_shards: Path, tmp_path: Path, nodes: dict[str, str]
) -> None:
    run_dir, name = tmp_path / "run", "Größe 1/2 λ"
    with ray_with_dashboard(tmp_path, nodes) as (address, head):
        ada = Shell({**nodes, "RAY_ADDRESS": address, "CARDIALIGN_USER": "ada"})
        first = ada.submit(name, run_dir, plain_shards)
        running = ada.until(name, lambda told: ((told["run"] or {}).get("last_checkpoint_step") or 0) >= 10)
        assert running["job"] == first and running["state"] == "running" and running["run"]["steps"] == STEPS
        assert ada("logs", first, "--rank", 0)["lines"]
        _kill(head)
        left = ada("status", run_dir, code=1)
        assert "no Ray cluster answers" in left["problem"]
    told = Shell(nodes)("status", run_dir)["run"]
    assert 10 <= told["step"] < STEPS, "the run was cut off in the middle"

    with ray_with_dashboard(tmp_path, nodes) as (address, _):
        ada = Shell({**nodes, "RAY_ADDRESS": address, "CARDIALIGN_USER": "ada"})
        assert "has forgotten its jobs" in ada("status", name, code=1)["remedy"]
        ada.submit(name, run_dir, plain_shards)
        ended = ada.until(name, lambda told: told["state"] not in ("queued", "running", "waiting"))
        assert ended["state"] == "finished" and ended["run"]["step"] == STEPS, ended
        (restart,) = ended["run"]["restarts"]
        assert restart["cause"].startswith("the command was given again")
        assert SECRET not in json.dumps(ada("list", "--all"))
        logs = _files(Path("/tmp"), "ray-*/session_*/logs/**/*")
        assert logs and not [path for path in logs if SECRET.encode() in path.read_bytes()], "Ray logs no secret"

    alone = tmp_path / "alone"
    words = ["--recipe", "simclr-tiny", "--run-dir", str(alone), *_settings(), "--set", "training.epochs=null"]
    words += ["--set", f"training.steps={STEPS}", "--set", f"data.shards={plain_shards}"]
    subprocess.run([sys.executable, "-m", "cardialign.pretrain", *words], env=nodes, check=True, timeout=600)
    assert trace(run_dir) == trace(alone)
    assert (run_dir / "export" / "model.safetensors").is_file() and (tmp_path / "mlflow.db").is_file()
    for path in [*_files(run_dir, "**/*"), tmp_path / "mlflow.db"]:
        assert SECRET.encode() not in path.read_bytes(), path
        assert path.stat().st_mode & 0o007 == 0 or _closed(path, run_dir), f"{path} is open to other users"


def test_two_users_share_a_cluster_and_one_waits_for_its_turn(
    plain_shards: Path, tmp_path: Path, nodes: dict[str, str]
) -> None:
    with ray_with_dashboard(tmp_path, nodes, cpus=1) as (address, _):
        ada, bob = (Shell({**nodes, "RAY_ADDRESS": address, "CARDIALIGN_USER": user}) for user in ("ada", "bob"))
        long = ("--steps", "100000")
        first = ada.submit("ours", tmp_path / "ada", plain_shards, *long)
        ada.until("ours", lambda told: ((told["run"] or {}).get("step") or 0) > 0)
        second = bob.submit("ours", tmp_path / "bob", plain_shards, "--wait-minutes", "2")
        assert second != first and ada("status", "ours")["job"] == first
        waiting = bob.until("ours", lambda told: told["state"] == "waiting")
        assert "resources: 1 CPU wanted, 0 free of 1 in the cluster" in waiting["why"]
        assert "is of ada" in bob("stop", first, code=2)["problem"]

        ada("stop", "ours")
        stopped = ada.until("ours", lambda told: told["state"] == "stopped")
        step = stopped["run"]["last_checkpoint_step"]
        assert f"at the checkpoint of step {step}" in stopped["why"] and step == stopped["run"]["step"]
        done = bob.until("ours", lambda told: told["state"] == "finished")
        assert done["run"]["step"] == STEPS

        ada.submit("ours", tmp_path / "ada", plain_shards, *long)
        ada.until("ours", lambda told: told["run"]["step"] > step)
        held = bob.submit("too much", tmp_path / "held", plain_shards, "--wait-minutes", "0.7")
        ended = bob.until("too much", lambda told: told["state"] == "failed")
        assert "stood still for" in ended["why"] and "1 CPU wanted" in ended["why"], held
        _freeze(tmp_path / "ada")
        ada("stop", "ours")
        ada.until("ours", lambda told: told["state"] == "stopping")
        assert "ended at once" in ada("stop", "ours")["done"]
        assert ada.until("ours", lambda told: told["state"] == "stopped", 60)


def _freeze(run_dir: Path) -> None:
    """The worker of a run reaches no checkpoint any more."""
    psutil.Process(json.loads((run_dir / "workers" / "rank-0.json").read_text())["pid"]).suspend()


def _kill(head: subprocess.Popen[bytes]) -> None:
    """The machine of a head node is gone: SIGKILL to all of its processes at once."""
    family = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
    for process in family:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=30)


def _closed(path: Path, run_dir: Path) -> bool:
    """A folder between them lets nobody else in. Ray Train's controller, which has the umask of its cluster, leaves an
    empty mark in a folder of ours."""
    return any(not folder.stat().st_mode & 0o007 for folder in path.parents if run_dir in folder.parents)


def _files(folder: Path, pattern: str) -> list[Path]:
    return [path for path in folder.glob(pattern) if path.is_file()]
