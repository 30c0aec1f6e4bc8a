"""What Ray does when it starts its processes on this machine, and does not let be set: signals, sessions, ports,
patience."""

from __future__ import annotations

import contextlib
import importlib
import random
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardialign.data_shards.shown import shown

START_SECONDS = 180.0
"""In how long a local Ray has to come up whose processes live; a busy machine of two cores took a minute."""
SERVICES = ("raylet", "gcs_server")
AGENT_PORTS = ("runtime_env_agent_port", "metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
"""Where the agents of a node listen. A raylet that is not told all four waits until its agents, two Python programs,
have chosen them, and ends after 15 s."""
_PORTS = range(10240, 32768)
"""Below those that Linux gives to whoever asks for any."""
_FATAL = re.compile(r"^\[[0-9 ,.:-]+ [CF] ")
"""A line before a trace of C++."""
_PRINTED = ("--stderr_filepath=", "--stdout_filepath=")


@dataclass
class Started:
    """A process of Ray's."""

    process: subprocess.Popen[bytes]

    def end_of_service(self) -> str:
        """How a service without which there is no node has ended, with its last words; "" of all else."""
        words = self.process.args if isinstance(self.process.args, list) else [self.process.args]
        name = Path(str(words[0])).name
        if name not in SERVICES or self.process.poll() is None:
            return ""
        logs = [Path(str(word).partition("=")[2]) for word in words if str(word).startswith(_PRINTED)]
        lines = [line for path in logs for line in _lines(path)]
        last = next(filter(_FATAL.search, lines), lines[-1] if lines else "")
        return f"{name} ended with code {self.process.returncode}" + (f": {shown(last)[:300]}" if last else "")


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8", "replace")[-4096:].splitlines() if line.strip()]
    except OSError:
        return []


@contextlib.contextmanager
def led_by_us() -> Iterator[None]:
    """A local Ray that is started in here hears no signal of ours, and may take its time while its services live."""
    with signals_left_alone(), _sessions_of_their_own() as started, _as_it_is_needed(), _patience(started):
        yield


@contextlib.contextmanager
def signals_left_alone() -> Iterator[None]:
    """Ray takes no SIGTERM of this process in here: it would exit with words of its own, and what was begun (a run in
    MLflow) would look alive for ever. Whoever runs the command decides what the signal means."""
    utils: Any = importlib.import_module("ray._private.utils")
    plain = utils.set_sigterm_handler
    try:
        utils.set_sigterm_handler = lambda handler: None
        yield
    finally:
        utils.set_sigterm_handler = plain


@contextlib.contextmanager
def _sessions_of_their_own() -> Iterator[list[Started]]:
    """Ray processes that start in here hear no signal that is sent to our process group; yields them, as they start.

    `timeout`, batch systems and terminals signal the whole group. A Ray that dies of it cannot bring the run to a
    checkpoint, and takes this process along a minute later.
    """
    services: Any = importlib.import_module("ray._private.services")
    plain = services.ConsolePopen
    started: list[Started] = []

    def start(words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = plain(_told(words), **{**options, "start_new_session": True})
        started.append(Started(process))
        return process

    try:
        services.ConsolePopen = start
        yield started
    finally:
        services.ConsolePopen = plain


def _told(words: Sequence[str]) -> Sequence[str]:
    """The command of a raylet with the one port of an agent that Ray tells the agent alone; another one as it is."""
    port = re.search(r" --listen-port=([1-9][0-9]*)", " ".join(words))
    if Path(words[0]).name != "raylet" or port is None:
        return words
    return [*words, f"--dashboard_agent_listen_port={port[1]}"]


def free_ports(number: int) -> list[int]:
    """Different ports of this machine at which nothing listens, drawn at random: two who draw at once get others."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(found) == number:
            break
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            found.append(port)
    return found


@contextlib.contextmanager
def _as_it_is_needed() -> Iterator[None]:
    """The node that starts in here waits for no agent (see `_told`), and has no process that asks for more nodes and
    none that sends what workers print to a driver, which prints none of it."""
    parameters: Any = importlib.import_module("ray._private.parameter").RayParams
    plain = parameters.update_pre_selected_port

    def choose(chosen: Any) -> None:
        for name, port in zip(AGENT_PORTS, free_ports(len(AGENT_PORTS)), strict=True):
            setattr(chosen, name, port)
        chosen.no_monitor, chosen.include_log_monitor = True, False
        plain(chosen)

    try:
        parameters.update_pre_selected_port = choose
        yield
    finally:
        parameters.update_pre_selected_port = plain


@contextlib.contextmanager
def _patience(started: list[Started]) -> Iterator[None]:
    """The node that Ray starts in here has START_SECONDS to be known, not 30 s, while its services live; one that ends
    is told at once."""
    services: Any = importlib.import_module("ray._private.services")
    plain, end = services.get_node, time.monotonic() + START_SECONDS

    def patient(*words: Any, **options: Any) -> Any:
        while True:
            try:
                return plain(*words, **options)
            except RuntimeError:
                if ended := next(filter(None, (each.end_of_service() for each in started)), ""):
                    raise Exception(ended) from None  # a RuntimeError would have Ray ask for 30 s more
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    try:
        services.get_node = patient
        yield
    finally:
        services.get_node = plain
