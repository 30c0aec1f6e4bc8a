"""A run on a joined cluster: a node that comes late, what the workers are given, a host that sees another folder."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from cardialign.cluster.runs.driver import train_on_ray
from cardialign.cluster.runs.placement import Placement
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import RunConfig, load_config
from cardialign.pretrain.run.files import ATTEMPTS, LOGS, METRICS
from tests.support.ray_cluster import ray_head, ray_node
from tests.support.tiny_set import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SECRET = "hunter2-is-no-password"
DRIVER = {
    "HF_ENDPOINT": "https://mirror.example",
    "HTTPS_PROXY": f"http://me:{SECRET}@proxy:3128",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AZURE_CLIENT_SECRET": SECRET,
    "CARDIALIGN_PASS_ENV": "AWS_*",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of the nodes; the driver's own has more."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    nodes = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HOME": "/of/the/node"}
    for name, value in {**DRIVER, "HF_HOME": "/of/the/driver"}.items():
        monkeypatch.setenv(name, value)
    return nodes


def config_of(shards: Path) -> RunConfig:
    return load_config("cardialign-demo", [*SMALL, f"data.shards={shards}", "training.steps=4", "model.depth=1"])


class Told(logging.Handler):
    """Calls `act` once, at the first message with `words`."""

    def __init__(self, words: str, act: Callable[[], object]) -> None:
        super().__init__(logging.WARNING)
        self.words, self.act, self.messages = words, act, list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        first = not any(self.words in message for message in self.messages)
        self.messages.append(record.getMessage())
        if first and self.words in self.messages[-1]:
            self.act()


def test_a_run_waits_for_a_node_with_a_message_and_its_workers_get_what_they_need(
    banked_shards: Path, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    with ray_head(tmp_path, environment, cpus=1) as address, contextlib.ExitStack() as nodes:
        add = Told("waiting for a node", lambda: nodes.enter_context(ray_node(tmp_path, address, environment)))
        log = logging.getLogger("cardialign.cluster")
        log.addHandler(add)
        try:
            result = train_on_ray(config_of(banked_shards), run_dir, workers=2, address=address)
        finally:
            log.removeHandler(add)
        assert result.steps == 4
        assert "2 CPUs wanted, 1 free of 1 in the cluster" in next(m for m in add.messages if "waiting for a node" in m)

        with monkeypatch.context() as other:
            other.setattr(ray, "__version__", "2.59.0")
            with pytest.raises(UserError, match=r"runs other versions than this machine: .*2\.59\.0"):
                train_on_ray(config_of(banked_shards), tmp_path / "b", workers=2, address=address)

        with pytest.raises(UserError) as raised:
            many = config_of(banked_shards)
            train_on_ray(many, tmp_path / "b", workers=3, address=address, placement=Placement(wait_minutes=0.05))
        assert "waiting for a node: 3 CPUs wanted, 2 free of 2 in the cluster" in raised.value.problem
        assert "--workers" in raised.value.remedy
        session = [path for path in Path("/tmp").glob("ray-*/session_*/logs/**/*") if path.is_file()]
        assert session and not [path for path in session if SECRET.encode() in path.read_bytes()], "Ray logs no secret"
    logs = sorted((run_dir / LOGS).glob("*/rank-*.log"))
    assert [path.name for path in logs] == ["rank-0.log", "rank-1.log"]
    for path in logs:
        text = path.read_text()
        taken = next(line for line in text.splitlines() if "taken over: " in line).partition("taken over: ")[2].split()
        assert {"HF_ENDPOINT", "HTTPS_PROXY", "CUBLAS_WORKSPACE_CONFIG", "AWS_SECRET_ACCESS_KEY"} <= set(taken)
        assert "TORCH_NCCL_TRACE_BUFFER_SIZE" in taken and "AZURE_CLIENT_SECRET" not in taken
        assert "HF_HOME" not in taken, "the node has set it"
        assert "action=commit" in text or "rank-1" in path.name, "what the loop logs is there, too"
    for path in (each for each in run_dir.rglob("*") if each.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.deployment
def test_a_host_that_sees_another_folder_is_found_before_the_first_step(
    banked_shards: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    hidden = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{run_dir}" && exec "$@"', "sh"]
    tried = shutil.which("unshare") and subprocess.run([*hidden, "true"], capture_output=True)
    if not tried or tried.returncode != 0:
        pytest.skip("a host of its own view of the file systems needs unshare and root")
    with ray_head(tmp_path, environment, cpus=1) as address, ray_node(tmp_path, address, environment, under=hidden):
        started = time.monotonic()
        with pytest.raises(UserError) as raised:
            train_on_ray(config_of(banked_shards), run_dir, workers=2, address=address)
        assert time.monotonic() - started < 120
    assert f"host {os.uname().nodename} does not see the run directory {run_dir}" in raised.value.problem
    assert "storage that every node mounts" in raised.value.remedy
    assert not (run_dir / METRICS).exists() and not (run_dir / ATTEMPTS).exists()
