"""Ray clusters that a test starts and ends: a head and further nodes, in child processes of the test."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

QUIET = ["--object-store-memory=134217728", "--disable-usage-stats", "--block"]


@contextlib.contextmanager
def ray_head(
    folder: Path, environment: dict[str, str], *, cpus: int = 2, python: Path | str = sys.executable
) -> Iterator[str]:
    """A Ray head node of its own; yields its address.

    It is in the foreground of a child process: `ray stop` would end every Ray of this user.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ray = [str(python), "-m", "ray.scripts.scripts"]
    with _scratch() as scratch:
        head = ["start", "--head", "--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}"]
        head += [f"--num-cpus={cpus}", "--include-dashboard=false", f"--temp-dir={scratch}", *QUIET]
        with _child([*ray, *head], folder / "ray-head.log", environment) as process:
            health = [*ray, "health-check", "--address", address]
            deadline = time.monotonic() + 90
            while subprocess.run(health, env=environment, capture_output=True).returncode != 0:
                told = (folder / "ray-head.log").read_text()[-3000:]
                assert process.poll() is None and time.monotonic() < deadline, told
            yield address


@contextlib.contextmanager
def ray_node(
    folder: Path, address: str, environment: dict[str, str], *, cpus: int = 1, under: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A further node of the cluster at `address`. under: words before its command, for example of `unshare`."""
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}"]
    words += ["--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", *QUIET]
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
def _child(words: Sequence[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("w") as stream:
        process = subprocess.Popen(words, env=environment, stdout=stream, stderr=stream)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
