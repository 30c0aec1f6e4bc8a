"""Two hosts of their own on this machine, as far as the network goes: namespaces and a cable that can be cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from cardialign.cluster.drills.outcome import SkippedError

PROGRAMS = ("unshare", "nsenter", "ip")
CARD, NOWHERE = "eth0", "02:00:00:00:00:99"
"""The card of each host; the address of a card that nobody has: what is sent there is lost without a word."""
ADDRESSES = ("10.78.0.1", "10.78.0.2")


@dataclass(frozen=True)
class Hosts:
    """processes: one that lives in each host."""

    processes: tuple[int, int]

    def under(self, number: int) -> tuple[str, ...]:
        """The words that make a command run on host 0 or 1."""
        return _program("nsenter"), f"--target={self.processes[number]}", "--net"

    def cut(self) -> None:
        """What one host sends to the other gets lost, without an error on either side."""
        for number in (0, 1):
            self._ip(number, "neigh", "replace", ADDRESSES[1 - number], "lladdr", NOWHERE, "nud", "permanent")

    def mend(self) -> None:
        for number in (0, 1):
            self._ip(number, "neigh", "del", ADDRESSES[1 - number])

    def join(self) -> None:
        first, second = map(str, self.processes)
        _run(_program("ip"), "link", "add", CARD, "netns", first, "type", "veth", "peer", CARD, "netns", second)
        for number, address in enumerate(ADDRESSES):
            self._ip(number, "addr", "add", f"{address}/24")
            for card in ("lo", CARD):
                _run(*self.under(number), _program("ip"), "link", "set", card, "up")

    def _ip(self, number: int, what: str, do: str, address: str, *more: str) -> None:
        _run(*self.under(number), _program("ip"), what, do, address, *more, "dev", CARD)


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Both, joined. Raises SkippedError where this user may make none."""
    with contextlib.ExitStack() as ending:
        try:
            hosts = Hosts((ending.enter_context(_host()), ending.enter_context(_host())))
            hosts.join()
        except OSError as error:
            raise SkippedError(f"hosts of their own: {error}") from None
        except subprocess.CalledProcessError as error:
            raise SkippedError(f"hosts of their own need root: {error.stderr.strip()}") from None
        yield hosts


@contextlib.contextmanager
def _host() -> Iterator[int]:
    """A process in a network of its own that lives as long as the block."""
    words = [_program("unshare"), "--net", "--", "sh", "-c", "echo ready; exec sleep 86400"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603 - ours
    try:
        assert process.stdout is not None and process.stderr is not None
        if process.stdout.readline() != "ready\n":
            raise subprocess.CalledProcessError(1, words, stderr=process.stderr.read())
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)  # noqa: S603 - programs of the system, our words


def _program(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if found is None:
        raise FileNotFoundError(f"this machine has no `{name}`")
    return found
