"""A real MLflow server behind a door that misbehaves: refuses, hangs, answers 500, or lets everything through."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from cardialign.cluster.drills.ground import PACE, Ground
from cardialign.cluster.drills.loop import Loop
from cardialign.cluster.drills.measures import require
from cardialign.cluster.drills.outcome import BrokenError, Outcome, SkippedError
from cardialign.cluster.drills.patience import slowness
from cardialign.cluster.drills.traces import judge_trace
from cardialign.cluster.runs.planned import plan_of, stepped, write_plan
from cardialign.pretrain.run.trace import read_trace

Mode = Literal["pass", "refuse", "hang", "500"]
FIRST, LAST = 15, 40
"""Steps at which the outage begins and ends."""
LONGEST_STEP = 3.0
"""Seconds: a step that waited for the store would take its timeout, a minute and more."""
UP_SECONDS = 240.0


class Door:
    """Forwards HTTP from a port of its own to a server, as `mode` says."""

    def __init__(self, to: int) -> None:
        self.to, self.mode, self.port = to, "pass", _free_port()
        self._server: ThreadingHTTPServer | None = None
        self.set("pass")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set(self, mode: Mode) -> None:
        """What it does from now on; a request that hangs is dropped."""
        self.mode = mode
        if mode == "refuse":
            self.close()
        elif self._server is None:
            self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
            self._server.daemon_threads = True
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        door = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                while door.mode == "hang":
                    time.sleep(0.05)
                if door.mode != "pass":
                    self.send_error(500)
                    return
                inside = http.client.HTTPConnection("127.0.0.1", door.to, timeout=60)
                inside.request(self.command, self.path, body, {**dict(self.headers), "Connection": "close"})
                answer = inside.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                return None

        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", Handler._answer)
        return Handler


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def store(folder: Path) -> Iterator[Door]:
    """An MLflow server on SQLite, for this machine alone, and its door. Raises SkippedError where none comes up."""
    folder.mkdir(parents=True)
    port = _free_port()
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with (folder / "mlflow.log").open("w") as log:
        process = subprocess.Popen(  # noqa: S603 - MLflow of this environment, words of a drill
            words, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
    try:
        deadline = time.monotonic() + UP_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SkippedError(f"no MLflow server came up: {(folder / 'mlflow.log').read_text()[-300:]}")
            time.sleep(0.3)
        door = Door(port)
        try:
            yield door
        finally:
            door.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


def outage(ground: Ground, mode: Mode) -> Outcome:
    """A run whose store misbehaves in the middle, and is back before its end."""
    outcome, run_dir = Outcome(lost=0), ground.run_dir(f"tracking-{mode}")
    with store(run_dir.with_name(f"{run_dir.name}-store")) as door:
        longest, delivered = _tracked(ground, run_dir, door, mode)
        judge_trace(outcome, run_dir, ground.undisturbed())
        require(longest < LONGEST_STEP * slowness(), f"a step took {longest:.1f} s while the store was away")
        synced = "" if delivered else "; the rest by `tracking sync`"
        _all_there(run_dir, door.address, delivered)
    outcome.note = f"longest step while it was away {longest:.2f} s; every point is in MLflow, once{synced}"
    return outcome


def _tracked(ground: Ground, run_dir: Path, door: Door, mode: Mode) -> tuple[float, bool]:
    """(the longest step of the outage, whether MLflow had everything at the end)."""
    from cardialign.cluster.tracking.tracker import RunTracker

    plan = plan_of(run_dir)
    write_plan(plan, pace=2 * PACE)
    tracker = RunTracker(run_dir, door.address, experiment="drill")
    tracker.start("drill", {"seed": ground.seed}, {})
    with Loop(ground.config(), run_dir, plan=plan) as loop:
        _until(loop, plan, FIRST)
        began = time.time()
        door.set(mode)
        _until(loop, plan, LAST)
        over = time.time()
        door.set("pass")
        ended = loop.wait()
    require(ended.done, f"the run failed: {ended.said}")
    times = [at for at, _ in stepped(plan) if began <= at <= over]
    longest = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
    return longest, tracker.finish("FINISHED")


def _until(loop: Loop, plan: Path, step: int) -> None:
    while not any(done >= step for _, done in stepped(plan)):
        if loop.ended:
            raise BrokenError(f"the run ended before step {step}: {loop.wait()}")
        time.sleep(0.02)


def _all_there(run_dir: Path, address: str, delivered: bool) -> None:
    """Raises BrokenError unless MLflow holds each loss of the trace, once and with its value."""
    from mlflow import MlflowClient

    from cardialign.cluster.tracking.replay import sync
    from cardialign.cluster.tracking.state import TrackingState

    if not delivered:
        sync(run_dir, address)
    state = TrackingState.load(run_dir)
    require(state is not None and state.run_id, "the run is in no store")
    assert state is not None
    points = MlflowClient(address).get_metric_history(state.run_id, "train/loss")
    found = sorted((point.step, point.value) for point in points)
    expected = [(int(line["step"]), float(line["loss"])) for line in read_trace(run_dir)]
    require(found == expected, f"MLflow holds {len(found)} losses of {len(expected)}, or other ones")
