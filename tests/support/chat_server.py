"""A real HTTP server on 127.0.0.1 that speaks the chat form well, late, not at all, or in prose, as a test says."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """content: what the model says; body: sent as it is in place of a chat completion. late: seconds before a word."""

    content: str = "[]"
    code: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    late: float = 0.0
    usage: tuple[int, int] | None = (100, 10)
    cut: bool = False
    """The line breaks half-way through the body."""


@dataclass
class Chat:
    """replies(report, how often it was asked before) -> what is sent. asked: report -> how often; most: at once."""

    replies: Callable[[str, int], Reply]
    address: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    at_once: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def chat_server(replies: Callable[[str, int], Reply]) -> Iterator[Chat]:
    chat = Chat(replies)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            report = body["messages"][-1]["content"].removeprefix("Report: ")
            with chat.lock:
                before = chat.asked[report]
                chat.asked[report] += 1
                chat.keys.add(self.headers.get("Authorization", ""))
                chat.bodies.append(body)
                chat.times.append(time.monotonic())
                chat.at_once += 1
                chat.most = max(chat.most, chat.at_once)
            try:
                self._send(chat.replies(report, before))
            except OSError:  # who waited is gone
                self.close_connection = True
            finally:
                with chat.lock:
                    chat.at_once -= 1

        def _send(self, reply: Reply) -> None:
            time.sleep(reply.late)
            said: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": reply.content}}]}
            if reply.usage is not None:
                said["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), reply.usage, strict=True))
            body = json.dumps(said).encode() if reply.body is None else reply.body
            self.send_response(reply.code)
            for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if reply.cut else body)
            self.close_connection = reply.cut

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    chat.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
