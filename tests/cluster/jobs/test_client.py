"""A cluster that does not answer as it should is told in a sentence, with what to do; no secret is in it."""

from __future__ import annotations

import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.jobs.client import connect, dashboard_address
from cardialign.data_shards.errors import UsageError, UserError
from tests.support.jobs_server import Dashboard

TOKEN = "a-token-that-nobody-may-see"


def problem_of(address: str, ca: Path | None = None) -> str:
    with pytest.raises(UserError) as raised:
        connect(address, ca)
    assert raised.value.remedy and TOKEN not in str(raised.value)
    return raised.value.problem


def test_tokens_come_from_the_environment_and_wrong_ones_are_told(
    board: Dashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    board.token = TOKEN
    assert "wants a token, and none was sent" in problem_of(board.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert "does not accept the token" in problem_of(board.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert connect(board.address).ray_version == "2.60.0"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert "cannot be read" in problem_of(board.address)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    client = connect(board.address)
    assert TOKEN not in repr(client)
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"Authorization": "Bearer of-the-proxy"}')
    assert "does not accept the token" in problem_of(board.address)
    monkeypatch.setenv("RAY_JOB_HEADERS", "Authorization: x")
    assert "is no JSON object" in problem_of(board.address)


@pytest.mark.parametrize("letter", ["\n", "\r\nX-Other: ", "\x7f", "\u20ac"])
def test_a_secret_that_no_header_can_carry_is_refused_without_being_shown(
    board: Dashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, letter: str
) -> None:
    """Python's own refusal shows the header."""
    odd = f"{TOKEN}{letter}{TOKEN}"
    (tmp_path / "token").write_bytes(odd.encode())
    for name, value in (
        ("RAY_AUTH_TOKEN", odd),
        ("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token")),
        ("RAY_JOB_HEADERS", json.dumps({"X-Proxy": odd})),
        ("RAY_JOB_HEADERS", json.dumps({odd: "x"})),
    ):
        with monkeypatch.context() as environment:
            environment.setenv(name, value)
            with pytest.raises(UsageError) as raised:
                connect(board.address)
            assert TOKEN not in str(raised.value) and raised.value.remedy
            assert (name if name != "RAY_AUTH_TOKEN_PATH" else str(tmp_path)) in raised.value.problem
    assert not board.asked


def test_what_is_no_dashboard_is_told(board: Dashboard) -> None:
    board.page = "<html>Welcome to nginx</html>"
    assert "does not answer as the dashboard" in problem_of(board.address)
    board.page = '{"hello": 1}'
    assert "is no dashboard of a Ray cluster" in problem_of(board.address)
    assert "no Ray cluster answers at http://127.0.0.1:9" in problem_of("127.0.0.1:9")


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ray://head:10001", "an address of Ray itself"),
        ("auto", "an address of Ray itself"),
        ("", "no cluster is named"),
        ("ftp://head", "is no http:// or https:// address"),
        ("http://head:port", "is no http:// or https:// address"),
        (f"https://me:{TOKEN}@head:8265", "holds a user, a password or a token"),
        (f"https://head:8265?token={TOKEN}", "holds a user, a password or a token"),
        (f"me:{TOKEN}@head:8265", "holds a user, a password or a token"),
        ("http://[::1", "is no http:// or https:// address"),
        ("http://head:8265/a folder", "is no http:// or https:// address"),
        ("http://head:8265/ä", "is no http:// or https:// address"),
    ],
)
def test_an_address_of_another_kind_is_refused(address: str, problem: str) -> None:
    assert problem in problem_of(address)


def test_an_address_may_have_a_path_and_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dashboard_address("https://gateway.example/ray/team-a/") == "https://gateway.example/ray/team-a"
    monkeypatch.setenv("RAY_ADDRESS", "head:8265")
    assert dashboard_address(None) == "http://head:8265"
    assert dashboard_address("http://other:1") == "http://other:1", "an option wins"


@pytest.fixture
def answers_once() -> Iterator[Callable[..., str]]:
    """`answers_once(status, headers, tls=...)` -> the address of a server that answers so."""
    servers: list[http.server.HTTPServer] = []

    def serve(status: int, headers: dict[str, str], tls: tuple[Path, Path] | None = None) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True).start()
        return f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_redirect_is_not_followed_with_the_token(
    board: Dashboard, answers_once: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert f"redirects to {board.address}" in problem_of(answers_once(302, {"Location": board.address}))
    assert not board.asked
    assert "answers with 503" in problem_of(answers_once(503, {}))


def test_a_certificate_of_ones_own_is_trusted_by_name_only(tmp_path: Path, answers_once: Callable[..., str]) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    made += [
        "-keyout",
        str(key),
        "-out",
        str(certificate),
        "-subj",
        "/CN=head",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a certificate is made by openssl, which is not here")
    address = answers_once(404, {}, (certificate, key))
    assert "the certificate of https://127.0.0.1" in problem_of(address)
    assert "has no Jobs API (it answers 404)" in problem_of(address, certificate), "the certificate is accepted"
    assert "is no file" in problem_of(address, tmp_path / "nothing.pem")
    assert "does not speak TLS" in problem_of(answers_once(200, {}).replace("http:", "https:"))


def test_an_answer_without_end_is_not_read_to_its_end(board: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cardialign.cluster.jobs.client.LARGEST_ANSWER", 1000)
    board.page = '{"a": "' + "x" * 2000 + '"}'
    assert "which is too much" in problem_of(board.address)
