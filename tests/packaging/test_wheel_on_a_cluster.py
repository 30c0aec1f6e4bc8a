"""An installed wheel joins a Ray cluster whose nodes have no such package, or another: the job brings its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.elsewhere import build_wheel, copied_sources, install
from tests.support.ray_cluster import ray_head
from tests.support.tiny_set import SMALL, make_tiny_cohort, make_tiny_shards

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.deployment, pytest.mark.timeout(10800)]


def test_an_installed_wheel_trains_on_a_cluster_that_does_not_have_it(tmp_path: Path) -> None:
    environment = install(build_wheel(copied_sources(tmp_path / "checkout"), tmp_path / "wheel"), tmp_path / "venv")
    shutil.rmtree(tmp_path / "checkout")
    shards = make_tiny_shards(tmp_path, make_tiny_cohort(tmp_path))
    nodes = environment.variables() | {"RAY_AUTH_MODE": "disabled"}
    installed = Path(environment.run("python", "-c", "import cardialign as c; print(c.__file__)", cwd=tmp_path).strip())
    assert installed.is_relative_to(environment.folder)
    head = _without(installed.parent, tmp_path)

    words = ["pretrain", "--recipe", "simclr-tiny", "--shards", shards, "--run-dir", tmp_path / "run", "--steps", "4"]
    words += ["--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}", "--json"]
    words += [part for assignment in SMALL[:1] + SMALL[3:] for part in ("--set", assignment)]
    with ray_head(tmp_path, nodes, python=head) as address:
        done = subprocess.run(
            [environment.bin / "cardialign", *map(str, words), "--address", address],
            cwd=tmp_path, env=nodes, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 4
    logs = sorted((tmp_path / "run" / "logs").glob("*/rank-*.log"))
    assert len(logs) == 2
    for log in logs:
        package = next(line for line in log.read_text().splitlines() if line.startswith("package ")).split()[1]
        assert "/runtime_resources/py_modules_files/" in package, "what the driver has is what the worker runs"


def _without(package: Path, folder: Path) -> Path:
    """A Python for the nodes in whose view of the file systems `package` is empty."""
    program = folder / "python-of-the-nodes"
    program.write_text(
        f'#!/bin/sh\nexec unshare --mount sh -c \'mount -t tmpfs none "{package}" && exec "$@"\' sh '
        f'"{sys.executable}" "$@"\n'
    )
    program.chmod(0o755)
    tried = subprocess.run([program, "-c", "pass"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"nodes without the package need unshare and root: {tried.stderr.strip()[-200:]}")
    return program
