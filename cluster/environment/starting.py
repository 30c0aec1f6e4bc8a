"""What Ray does when it starts its processes on this machine, and does not let be set: signals, sessions, patience."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_SECONDS = 180.0
"""In how long a local Ray has to come up whose processes live; a busy machine of two cores took a minute."""
SERVICES = ("raylet", "gcs_server")


@contextlib.contextmanager
def led_by_us() -> Iterator[None]:
    """A local Ray that is started in here hears no signal of ours, and may take its time while its services live."""
    with signals_left_alone(), _sessions_of_their_own() as started, _patience(started):
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
def _sessions_of_their_own() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Ray processes that start in here hear no signal that is sent to our process group; yields them, as they start.

    `timeout`, batch systems and terminals signal the whole group. A Ray that dies of it cannot bring the run to a
    checkpoint, and takes this process along a minute later.
    """
    services: Any = importlib.import_module("ray._private.services")
    plain = services.ConsolePopen
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = plain(*words, **{**options, "start_new_session": True})
        started.append(process)
        return process

    try:
        services.ConsolePopen = start
        yield started
    finally:
        services.ConsolePopen = plain


@contextlib.contextmanager
def _patience(started: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """The node that Ray starts in here has START_SECONDS to be known, not 30 s, while its services live."""
    services: Any = importlib.import_module("ray._private.services")
    plain, end = services.get_node, time.monotonic() + START_SECONDS

    def patient(*words: Any, **options: Any) -> Any:
        while True:
            try:
                return plain(*words, **options)
            except RuntimeError:
                if time.monotonic() > end or any(_ended_service(process) for process in started):
                    raise
                time.sleep(0.1)

    try:
        services.get_node = patient
        yield
    finally:
        services.get_node = plain


def _ended_service(process: subprocess.Popen[bytes]) -> bool:
    words = process.args if isinstance(process.args, list) else [process.args]
    return Path(str(words[0])).name in SERVICES and process.poll() is not None
