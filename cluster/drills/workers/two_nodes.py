"""A Ray of two nodes with one CPU each on this machine, of which the second can be lost and come back."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cardialign.cluster.drills.network.hosts import ADDRESSES, Hosts
from cardialign.cluster.drills.outcome import SkippedError
from cardialign.cluster.environment.put_off import STAND_INS
from cardialign.cluster.environment.session import MODE, TOKEN_PATH

UP_SECONDS = 300.0
PATIENT = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300", "RAY_worker_register_timeout_seconds": "300"}
"""A busy machine starts Ray's many processes slowly."""
UP, SLOW, TRIES = "Ray runtime started", "timed out during startup", 5


class TwoNodes:
    """address: of the head. hosts: where they live; both on this machine without."""

    def __init__(self, folder: Path, scratch: Path, hosts: Hosts | None = None) -> None:
        self.folder, self.scratch, self.hosts = folder, scratch, hosts
        self.processes: list[subprocess.Popen[bytes]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"{self._ip(0)}:{port}"

    def _ip(self, host: int) -> str:
        return "127.0.0.1" if self.hosts is None else ADDRESSES[host]

    def head_starts(self) -> None:
        port = self.address.rpartition(":")[2]
        self._start(0, "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.scratch}")

    def node_starts(self) -> None:
        """The second node joins, for the first time or again."""
        self._start(1, f"--address={self.address}")

    def node_is_lost(self) -> float:
        """All processes of the node that came last end at once, as with its power; when."""
        at = time.time()
        end_all(self.processes.pop())
        return at

    def close(self) -> None:
        for process in reversed(self.processes):
            end_all(process)

    def _start(self, host: int, *words: str) -> None:
        under = () if self.hosts is None else self.hosts.under(host)
        start = [*under, sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={self._ip(host)}"]
        start += [*words, "--num-cpus=1", "--object-store-memory=134217728", "--disable-usage-stats", "--block"]
        for tries_left in reversed(range(TRIES)):
            process, log = self._tried(start)
            if process is not None:
                self.processes.append(process)
                return
            if not tries_left or SLOW not in log:  # a raylet has seconds for its agents, and no setting changes that
                raise SkippedError(f"no Ray of two nodes came up: {' '.join(log.split()[-40:])}")

    def _tried(self, start: list[str]) -> tuple[subprocess.Popen[bytes] | None, str]:
        """The process of a node, None where it did not come up, and its log."""
        log = self.folder / f"ray-{len(self.processes)}.{time.time_ns()}.log"
        modules = os.pathsep.join([str(STAND_INS), os.environ.get("PYTHONPATH", "")])
        with log.open("w") as stream:
            process = subprocess.Popen(  # noqa: S603 - Ray of this environment, words of a drill
                start, env={**PATIENT, **os.environ, "PYTHONPATH": modules}, stdout=stream, stderr=stream
            )
        deadline = time.monotonic() + UP_SECONDS
        while UP not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                end_all(process)
                return None, log.read_text(errors="replace")
            time.sleep(0.2)
        return process, ""


@contextlib.contextmanager
def two_nodes(folder: Path, hosts: Hosts | None = None) -> Iterator[TwoNodes]:
    """Both nodes, and the token that this process and what it starts show them. Raises SkippedError where no Ray comes
    up."""
    with one_node(folder, hosts) as nodes:
        nodes.node_starts()
        yield nodes


@contextlib.contextmanager
def one_node(folder: Path, hosts: Hosts | None = None) -> Iterator[TwoNodes]:
    """The head alone."""
    scratch = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # socket paths stay short
    token = scratch / "auth_token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    ours = {MODE: "token", TOKEN_PATH: str(token)}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    nodes = TwoNodes(folder, scratch / "r", hosts)
    try:
        nodes.head_starts()
        yield nodes
    finally:
        nodes.close()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(scratch, ignore_errors=True)


def end_all(process: subprocess.Popen[bytes]) -> None:
    """A process and all below it, at once."""
    import psutil

    with contextlib.suppress(psutil.Error):
        first = psutil.Process(process.pid)
        for each in [first, *first.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                each.kill()
    process.wait(timeout=30)
