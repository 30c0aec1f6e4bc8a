"""The README's path on a cluster, on a Ray head node that the test starts."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cardialign.data_shards.cohort.generate import Cohort, make_cohort
from tests.support.readme import block_with, run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(700)]


@contextlib.contextmanager
def ray_head(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """A Ray head node of its own; yields its address.

    It is in the foreground of a child process: `ray stop` would end every Ray of this user.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    scratch = tempfile.mkdtemp(
        prefix="ray-", dir="/tmp" if Path("/tmp").is_dir() else None
    )  # socket paths must stay short
    head = [
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={address.partition(':')[2]}",
        "--num-cpus=2",
    ]
    quiet = [
        "--include-dashboard=false",
        "--object-store-memory=134217728",
        "--disable-usage-stats",
        f"--temp-dir={scratch}",
    ]
    with (folder / "ray-head.log").open("w") as log:
        process = subprocess.Popen([*ray, *head, *quiet], env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 90
        while (
            subprocess.run(
                [*ray, "health-check", "--address", address], env=environment, capture_output=True
            ).returncode
            != 0
        ):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "ray-head.log").read_text()[-3000:]
        yield address
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(scratch, ignore_errors=True)


def test_the_path_on_a_cluster(tmp_path: Path, shell: dict[str, str]) -> None:
    recordings = make_cohort(tmp_path / "mimic", Cohort(patients=40, layout="mimic-iv-ecg", seed=6)).path
    settings = {
        "MIMIC": str(recordings),
        "SHARED": str(tmp_path),
        "TEXT_ENCODER": "minilm",
        "RECIPE": "cardialign-demo",
        "WORKERS": "2",
        "TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "RAY_AUTH_MODE": "disabled",
    }
    environment = {**shell, **settings}
    with ray_head(tmp_path, environment) as address:
        run(block_with('"$MIMIC"'), tmp_path, {**environment, "RAY_ADDRESS": address})
    assert (tmp_path / "run-1" / "export" / "model.safetensors").is_file()
