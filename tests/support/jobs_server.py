"""A small HTTP server that speaks the Jobs API as Ray 2.60's dashboard does: paths, codes and JSON as recorded there.

It runs nothing. A test says how the jobs stand and what their logs hold, and reads what it was asked.
"""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NODE = "0f744dc952034f2c4da713efe5cd8e8448a0cb4ce169eec933af8146"
COMMIT = "b7f4259e944bf6959f721b106adc366ddfa0c356"


@dataclass
class Dashboard:
    """What the server knows. token: None for a cluster without. helper: what a job of `run_beside` prints."""

    address: str = ""
    token: str | None = None
    ray_version: str = "2.60.0"
    session: str = "session_of_another_machine"
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    page: str | None = None
    helper: str = ""
    starting: int = 0
    """So many jobs are not taken yet."""

    def end(self, job_id: str, status: str, exit_code: int | None = None, message: str = "") -> None:
        """A job ends so."""
        told = {"status": status, "end_time": 1795662182047, "driver_exit_code": exit_code, "message": message}
        self.jobs[job_id].update(told)

    def run(self, job_id: str) -> None:
        self.jobs[job_id].update(status="RUNNING", driver_node_id=NODE, message="Job is currently running.")

    def answer(self, method: str, path: str, content: bytes) -> tuple[int, str]:
        parts, query = (
            path.partition("?")[0].strip("/").split("/"),
            dict(urllib.parse.parse_qsl(path.partition("?")[2])),
        )
        if parts == ["api", "version"]:
            told = {"version": "4", "ray_version": self.ray_version, "ray_commit": COMMIT, "session_name": self.session}
            return 200, json.dumps(told)
        if parts[:3] == ["api", "packages", "gcs"]:
            if method == "PUT":
                self.packages[parts[3]] = content
                return 200, ""
            found = parts[3] in self.packages
            return (200, "") if found else (404, f"Package gcs://{parts[3]} does not exist")
        if parts[:3] == ["api", "v0", "logs"]:
            job_id = query["filename"].removeprefix("job-driver-").removesuffix(".log")
            if job_id not in self.logs:
                return 500, f"A file is not found at: /tmp/ray/{self.session}/logs/{query['filename']}"
            return 200, "".join(self.logs[job_id].splitlines(keepends=True)[-int(query["lines"]) :])
        if parts == ["api", "jobs"]:
            return self._submit(json.loads(content)) if method == "POST" else (200, json.dumps([*self.jobs.values()]))
        if parts[:2] != ["api", "jobs"]:
            return 404, "404: Not Found"
        if parts[2] not in self.jobs:
            return 404, f"Job {parts[2]} does not exist"
        if parts[3:] == ["stop"]:
            return 200, json.dumps({"stopped": self.jobs[parts[2]]["status"] in ("PENDING", "RUNNING")})
        return 200, json.dumps(self.jobs[parts[2]] if parts[3:] == [] else {"logs": self.logs.get(parts[2], "")})

    def _submit(self, asked: dict[str, Any]) -> tuple[int, str]:
        job_id = asked["submission_id"]
        if self.starting:
            self.starting -= 1
            return 500, "Traceback ...\nRuntimeError: No available agent to submit job, please try again later."
        if job_id in self.jobs:
            return (
                500,
                f"Traceback ...\nValueError: Job with submission_id {job_id} already exists. Please use a different",
            )
        self.jobs[job_id] = {
            "type": "SUBMISSION", "job_id": None, "submission_id": job_id, "driver_info": None, "status": "PENDING",
            "entrypoint": asked["entrypoint"], "message": "Job has not started yet.", "error_type": None,
            "start_time": 1795662146921 + len(self.jobs), "end_time": None, "metadata": asked.get("metadata"),
            "runtime_env": asked.get("runtime_env"), "driver_agent_http_address": None, "driver_node_id": None,
            "driver_exit_code": None,
        }  # fmt: skip
        if "cardialign_helper_of" in asked["metadata"]:
            self.run(job_id)
            self.end(job_id, "SUCCEEDED", 0)
            self.logs[job_id] = f"cardialign-helper-begins\n{self.helper}"
        return 200, json.dumps({"job_id": job_id, "submission_id": job_id})


@contextlib.contextmanager
def jobs_server(board: Dashboard) -> Iterator[Dashboard]:
    """`board` at an address of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def _any(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            board.asked.append((self.command, self.path))
            status, text = board.answer(self.command, self.path, content)
            sent = self.headers.get("Authorization", "")
            if board.token is not None and sent != f"Bearer {board.token}":
                missing, wrong = "Unauthorized: Missing authentication token", "Forbidden: Invalid authentication token"
                status, text = (403, wrong) if sent else (401, missing)
            self.send_response(status)
            body = (text if board.page is None else board.page).encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = _any  # noqa: N815 - the library's names

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    board.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield board
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
