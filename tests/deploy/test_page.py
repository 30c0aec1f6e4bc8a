"""The lines of `deploy/README.md` as they stand: two hosts, a Slurm, and Kubernetes as far as it can be judged here."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from pathlib import Path

import pytest
import yaml

from cardialign.cluster.drills.patience import Patience
from cardialign.pretrain.config import load_config
from tests.support.hosts import Host, hosts
from tests.support.kubernetes import pods
from tests.support.readme import ROOT, block_with, blocks, run
from tests.support.slurm import slurm
from tests.support.tiny_set import SMALL

PAGE = "deploy/README.md"


@pytest.fixture
def settings(banked_shards: Path, tmp_path: Path, shell: dict[str, str]) -> dict[str, str]:
    """What the page leaves to its reader: a recipe of seconds, a shared folder with shards."""
    (tmp_path / "shards").symlink_to(banked_shards)
    recipe = load_config("cardialign-demo", [*SMALL, "training.steps=4", "model.depth=1"]).resolved()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    own = {"SHARED": str(tmp_path), "RECIPE": str(tmp_path / "recipe.yaml")}
    return {**shell, **own, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}


def test_each_way_has_ten_lines_at_most_and_its_test() -> None:
    ways = ["ray start", "kubectl", "sbatch"]
    assert len(blocks("bash", PAGE)) == len(ways)
    assert all(len(block_with(word, page=PAGE).splitlines()) <= 10 for word in ways)


def give(host: Host, lines: str) -> None:
    """A line of the page; Ray gives its node 30 s to start, which a busy machine does not always keep."""
    for tries_left in (5, 4, 3, 2, 1, 0):
        try:
            host.run("bash", "-euo", "pipefail", "-c", lines, seconds=900)
            return
        except AssertionError as error:
            if not tries_left or "timed out during startup" not in str(error):
                raise
            host.run("ray", "stop", "--force")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.timeout(10800)
def test_the_lines_for_plain_hosts(settings: dict[str, str], tmp_path: Path) -> None:
    block = block_with("ray start", page=PAGE)
    commands = re.sub(r"\\\n", " ", block).splitlines()
    everywhere = [line for line in commands if line.startswith("export")]
    with hosts({**settings, "HEAD": "10.77.0.1", "WORKERS": "2"}, 2) as (first, second):
        for line in commands:
            places = [second] if "on every other" in line else [first, second] if "on every host" in line else [first]
            for host in places:
                give(host, "\n".join([*everywhere, line]))
        left = first.run("ps", "-eo", "args") + second.run("ps", "-eo", "args")
        assert "raylet" not in left, "ray stop ended both"
    logs = list((tmp_path / "runs" / "plain" / "logs").glob("*/rank-*.log"))
    assert len(logs) == 2 and (tmp_path / "runs" / "plain" / "export" / "model.safetensors").is_file()
    assert (tmp_path / "ray.token").stat().st_mode & 0o077 == 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.deployment
@pytest.mark.timeout(10800)
def test_the_lines_for_slurm(settings: dict[str, str], tmp_path: Path) -> None:
    with slurm({**settings, "NODES": "1"}) as cluster:
        lines = f"cd {shlex.quote(str(ROOT))}\n{block_with('sbatch', page=PAGE)}"
        lines = re.sub(r"^sbatch ", f"sbatch --output={shlex.quote(str(tmp_path))}/job.log ", lines, flags=re.MULTILINE)
        answer = cluster.run("bash", "-euo", "pipefail", "-c", lines)
        number = re.findall(r"Submitted batch job (\d+)", answer)[0]
        patience = Patience(900)
        while cluster.job(number)["JobState"] in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
            assert not patience.over(), cluster.told()
            time.sleep(0.5)
        assert cluster.job(number)["JobState"] == "COMPLETED", (tmp_path / "job.log").read_text()[-4000:]
    assert (tmp_path / "runs" / "slurm" / "export" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_lines_for_kuberay(tmp_path: Path, shell: dict[str, str], definitions: Path) -> None:
    """`podman build` and `push` want a base image and a registry: `test_image.py` builds."""
    build, lines = block_with("kubectl", page=PAGE).split("\n", 1)
    assert build.startswith("podman build") and (ROOT / build.split()[3]).is_file()
    keys = {
        "mlflow-server": re.findall(r"\$\(secret ([\w-]+)\)", (ROOT / "deploy" / "mlflow" / "serve.sh").read_text()),
        "cardialign-mlflow": ["username", "password"],
        "cardialign-object-storage": ["access-key", "secret-key"],
    }
    for name, files in keys.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("x")
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tests.support.kubectl "$@"\n')
    kubectl.chmod(0o755)
    own = {"IMAGE": "registry.example/cardialign:7", "SECRETS": str(tmp_path)}
    own |= {"KUBECTL_NOTES": str(tmp_path / "notes"), "KUBERAY_DEFINITIONS": str(definitions)}
    run(lines, ROOT, {**shell, **own})

    made = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    assert [one["kind"] for one in made].count("RayJob") == 1
    secrets = {one["metadata"]["name"]: set(one["keys"]) for one in made if one["kind"] == "Secret"}
    for pod in (pod for one in made for pod in pods(one)):
        assert {container["image"] for container in pod["containers"]} == {own["IMAGE"]}
        for variable in (one for container in pod["containers"] for one in container.get("env", [])):
            wanted = variable.get("valueFrom", {}).get("secretKeyRef", {"optional": True})
            assert wanted.get("optional") or wanted["key"] in secrets[wanted["name"]]
        assert {one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one} <= secrets.keys()
