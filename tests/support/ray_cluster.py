"""Ray clusters that a test starts and ends: a head and further nodes, in child processes of the test."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cardialign.cluster.drills.patience import Patience
from cardialign.cluster.environment.put_off import STAND_INS

PATIENT = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300", "RAY_worker_register_timeout_seconds": "300"}
"""A busy machine starts Ray's many processes slowly."""
QUIET = ["--object-store-memory=134217728", "--disable-usage-stats", "--block"]


@contextlib.contextmanager
def ray_head(
    folder: Path, environment: dict[str, str], *, cpus: int = 2, python: Path | str = sys.executable
) -> Iterator[str]:
    """A Ray head node of its own; yields its address.

    It is in the foreground of a child process: `ray stop` would end every Ray of this user.
    """
    with _head(folder / "ray-head.log", environment, [f"--num-cpus={cpus}", "--include-dashboard=false"], python) as (
        _,
        address,
    ):
        yield address


@contextlib.contextmanager
def ray_with_dashboard(
    folder: Path, environment: dict[str, str], *, cpus: int = 2
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Ray head node with its dashboard, as `ray start --head` gives it; yields the dashboard's address and the
    process, in a process group of its own: killing the group is the end of the whole node."""
    port = _free_port()
    words = ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    words += [f"--dashboard-agent-listen-port={_free_port()}"]  # another Ray of this machine may hold the usual one
    patient = {**PATIENT, **environment}
    with _head(folder / "ray-head.log", patient, [*words, f"--num-cpus={cpus}"], own_group=True) as (process, _):
        yield f"http://127.0.0.1:{port}", process


@contextlib.contextmanager
def _head(
    log: Path, environment: dict[str, str], words: Sequence[str], python: Path | str = sys.executable,
    own_group: bool = False,
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:  # fmt: skip
    """A head node that runs, and its address."""
    for tries_left in (5, 4, 3, 2, 1, 0):
        address = f"127.0.0.1:{_free_port()}"
        start = [str(python), "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address=127.0.0.1"]
        start += [f"--port={address.partition(':')[2]}", *words]
        with (
            _scratch() as scratch,
            _child([*start, f"--temp-dir={scratch}", *QUIET], log, environment, start_new_session=own_group) as process,
        ):
            patience = Patience(300)
            while not (up := "Ray runtime started" in log.read_text()) and process.poll() is None:
                assert not patience.over(), log.read_text()[-3000:]
                time.sleep(0.2)
            if not up and tries_left and "timed out during startup" in log.read_text():
                continue  # a raylet has 15 s for its agents, itself 30 s, and no setting of Ray's changes that
            assert up and process.poll() is None, log.read_text()[-3000:]
            yield process, address
            return


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def ray_node(
    folder: Path,
    address: str,
    environment: dict[str, str],
    *,
    cpus: int = 1,
    under: Sequence[str] = (),
    more: Sequence[str] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """A further node of the cluster at `address`. under: words before its command, for example of `unshare`; more:
    further options of `ray start`."""
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}"]
    words += ["--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", *more, *QUIET]
    with _child([*under, *words], folder / "ray-node.log", environment) as process:
        yield process


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp" if Path("/tmp").is_dir() else None)  # socket paths stay short
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _child(
    words: Sequence[str], log: Path, environment: dict[str, str], **more: Any
) -> Iterator[subprocess.Popen[bytes]]:
    modules = {"PYTHONPATH": os.pathsep.join(filter(None, [str(STAND_INS), environment.get("PYTHONPATH", "")]))}
    with log.open("w") as stream:
        process = subprocess.Popen(words, env=environment | modules, stdout=stream, stderr=stream, **more)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
