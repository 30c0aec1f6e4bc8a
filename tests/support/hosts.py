"""Hosts of their own on this machine: namespaces for processes, network, host name and mounts, joined by a cable.

So `ray stop` on a host finds the Ray of that host alone, nothing listens outside, and all of it ends with the host's
first process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("unshare", "nsenter", "ip")


@dataclass(frozen=True)
class Host:
    """Called node1, node2, ... with the address 10.77.0.1, 10.77.0.2, ...; files are those of this machine."""

    first_process: int
    folder: Path
    environment: dict[str, str]

    def run(self, *words: object, check: bool = True, seconds: float = 120) -> str:
        """stdout of a command; fails with everything it printed, and with every log in `folder`."""
        command = [*enter(self.first_process), *map(str, words)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=seconds)
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}{told(self.folder)}"
        return done.stdout


def told(folder: Path) -> str:
    return "".join(f"\n--- {path.name}\n{path.read_text()[-1500:]}" for path in folder.glob("*.log"))


def enter(first_process: int) -> list[str]:
    return ["nsenter", f"--target={first_process}", "--pid", "--net", "--uts", "--mount", "--wdns=."]


def found(program: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))


@contextlib.contextmanager
def hosts(environment: Mapping[str, str], number: int = 1) -> Iterator[tuple[Host, ...]]:
    """One or two hosts; skips the test where none can be made."""
    missing = [program for program in PROGRAMS if found(program) is None]
    if missing:
        pytest.skip(f"hosts of their own on this machine need {', '.join(missing)} (Debian: util-linux, iproute2)")
    tried = subprocess.run(["unshare", "--pid", "--net", "--uts", "--mount", "--fork", "true"], capture_output=True)
    if tried.returncode != 0:
        pytest.skip("hosts in namespaces of their own need root")
    assert 1 <= number <= 2, "a third host needs a bridge"
    variables = {**environment, "PATH": os.pathsep.join([environment["PATH"], "/usr/sbin", "/sbin"])}
    folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
    folder.chmod(0o755)
    names = "".join(f"10.77.0.{n} node{n}\n" for n in range(1, number + 1))
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    with contextlib.ExitStack() as ending:
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        first = [ending.enter_context(_host(n, folder, variables)) for n in range(1, number + 1)]
        _join(first, variables)
        yield tuple(Host(process, folder, variables) for process in first)


@contextlib.contextmanager
def _host(number: int, folder: Path, environment: Mapping[str, str]) -> Iterator[int]:
    """The first process of a new host, as this machine numbers it."""
    start = f"hostname node{number}; ip link set lo up; mount --bind {folder}/hosts /etc/hosts; "
    start += "mount -t tmpfs none /dev/shm; echo ready; while :; do sleep 3600 & wait; done"  # it buries its orphans
    words = ["unshare", "--pid", "--net", "--uts", "--mount", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen([*words, "bash", "-ec", start], env=dict(environment), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    finally:
        process.kill()  # --kill-child: the host's first process goes with it, and all others with that
        process.wait(timeout=30)


def _join(first: Sequence[int], environment: Mapping[str, str]) -> None:
    """A cable from the first host to the last; with one host both ends are there."""

    def run(*words: str) -> None:
        subprocess.run(words, env=dict(environment), check=True, capture_output=True)

    ends = ["link", "add", "eth0", "netns", str(first[0]), "type", "veth", "peer", "name", "eth1"]
    run("ip", *ends, "netns", str(first[-1]))
    for number, (process, card) in enumerate(zip((first[0], first[-1]), ("eth0", "eth1"), strict=True), start=1):
        run(*enter(process), "ip", "addr", "add", f"10.77.0.{number}/24", "dev", card)
        run(*enter(process), "ip", "link", "set", card, "up")
