"""Every code block of the README runs as it stands, in the order of the page.

Only the length of a training run and its cohort are cut.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
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

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
SHORT = "--set training.epochs=null --set training.steps=4 --set training.log_every=2"
BATCH = "--set training.global_batch=32"

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


def blocks(language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall((ROOT / "README.md").read_text()) if kind == language]


def block_with(word: str, language: str = "bash") -> str:
    found = [code for code in blocks(language) if word in code]
    assert len(found) == 1, f"{len(found)} {language} blocks of the README hold {word!r}"
    return found[0]


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """Environment in which `cardialign` is this checkout's.

    `pretrain` and `demo` train a few steps, and 60 virtual patients do for 200.
    """
    program = tmp_path / "bin" / "cardialign"
    program.parent.mkdir()
    ours = f'exec {shlex.quote(sys.executable)} -m cardialign "$@"'
    program.write_text(
        f'#!/bin/sh\ncase "$1" in\n  pretrain|demo) {ours} {SHORT} {BATCH} ;;\n'
        f'  cohort) [ "$4" = 200 ] && set -- "$@" --patients 60; {ours} ;;\n'
        f"  *) {ours} ;;\nesac\n"
    )
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def run(code: str, folder: Path, environment: dict[str, str], deadline: float = 300) -> str:
    """Run a block with `bash -e` in `folder`; its stdout. Fails with everything it printed."""
    process = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=deadline,
    )
    assert process.returncode == 0, (
        f"{code}\n--- stdout\n{process.stdout[-4000:]}\n--- stderr\n{process.stderr[-4000:]}"
    )
    return process.stdout


def test_every_block_belongs_to_a_test() -> None:
    told = ["make demo", "make test", "cardialign doctor", '"$PTB_XL"', '"$MIMIC"']
    assert len(blocks("bash")) == len(told) and all(block_with(word) for word in told)
    assert len(blocks("python")) == 1


def test_make_demo_and_make_test_are_the_commands_behind_them(tmp_path: Path, shell: dict[str, str]) -> None:
    tools = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(word in tools for word in ("ruff check", "ruff format --check", "mypy", "pytest"))
    recipe = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = next(line for line in recipe.splitlines() if "cardialign demo" in line)
    command = command[command.index("cardialign demo") :]
    printed = run(f"{command} --patients 40 --unseen-patients 20", tmp_path, shell)
    assert (tmp_path / "demo" / "report.html").stat().st_size > 50_000
    for shown in (
        "class",
        "AUROC",
        "untrained",
        "macro, 29 classes",
        "report     demo/report.html",
        "mlflow ui --backend-store-uri",
    ):
        assert shown in printed
        assert shown in block_with("macro, 29 classes", "text"), "the README shows what the demo prints"


def test_the_path_by_hand_and_from_python(tmp_path: Path, shell: dict[str, str]) -> None:
    run(block_with("cardialign doctor"), tmp_path, shell)
    assert (tmp_path / "work" / "ecg.png").is_file()
    assert (tmp_path / "work" / "pulled" / "model.safetensors").is_file()
    assert (tmp_path / "work" / "embedding.npy").is_file()
    (tmp_path / "block.py").write_text(blocks("python")[0])
    printed = run(f"{shlex.quote(sys.executable)} block.py", tmp_path, shell)
    assert "(12, 5000)" in printed and (tmp_path / "work" / "again.png").is_file()


def test_the_path_on_recordings_in_the_layout_of_ptb_xl(tmp_path: Path, shell: dict[str, str]) -> None:
    recordings = make_cohort(tmp_path / "ptb-xl", Cohort(patients=60, layout="ptb-xl", seed=5)).path
    printed = run(block_with('"$PTB_XL"'), tmp_path, {**shell, "PTB_XL": str(recordings)})
    assert "zero-shot, ptb-xl-super-v1" in printed


@contextlib.contextmanager
def ray_head(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """A Ray head node of its own; yields its address.

    It runs in the foreground of a child process: `ray stop` would end every Ray of this user.
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
