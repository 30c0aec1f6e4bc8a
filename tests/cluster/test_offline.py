"""Offline means that nothing connects beyond this machine, whatever a command, a file or a package asks for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.tracking.mlflow_store import _check_database
from cardialign.data_shards import offline
from cardialign.data_shards.errors import UsageError, UserError
from tests.cluster.conftest import Answer

ELSEWHERE = "192.0.2.7"
"""TEST-NET-1 (RFC 5737): nobody's address."""


@pytest.fixture
def switched_on(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in offline.OF_OTHERS:
        monkeypatch.setenv(name, os.environ.get(name, "0"))
    monkeypatch.setenv(offline.SWITCH, "1")
    offline.stay_offline()
    return monkeypatch


@pytest.mark.parametrize(
    "connect",
    [
        lambda: socket.create_connection((ELSEWHERE, 80), timeout=1),
        lambda: socket.create_connection(("example.org", 443), timeout=1),
        lambda: socket.getaddrinfo("example.org", 443),
        lambda: socket.gethostbyname("example.org"),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (ELSEWHERE, 53)),
        lambda: socket.socket().connect_ex((ELSEWHERE, 80)),
        lambda: socket.socket(socket.AF_INET6).connect(("2001:db8::7", 80)),
        lambda: socket.socket(socket.AF_INET6).connect((f"::ffff:{ELSEWHERE}", 80)),
    ],
)
def test_no_socket_leaves_the_machine(switched_on: pytest.MonkeyPatch, connect: Any) -> None:
    with pytest.raises(UserError, match="CARDIALIGN_OFFLINE forbids it"):
        connect()


def test_this_machine_and_what_was_allowed_are_reached(switched_on: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        for host in ("127.0.0.1", "localhost", "::ffff:127.0.0.1"):
            socket.create_connection((host, server.getsockname()[1]), timeout=5).close()
    switched_on.setenv(offline.HOSTS, "192.0.2.0/24, Head.Cluster")
    assert offline._is_here(ELSEWHERE) and offline._is_here("head.cluster") and not offline._is_here("198.51.100.1")
    switched_on.setenv(offline.HOSTS, "10.0.0.0/99")
    with pytest.raises(UsageError, match=r"10\.0\.0\.0/99 is no network"):
        offline.stay_offline()


def test_without_the_switch_nothing_is_forbidden(switched_on: pytest.MonkeyPatch) -> None:
    switched_on.setenv(offline.SWITCH, "0")
    with socket.socket() as tried:
        tried.settimeout(0.05)
        assert tried.connect_ex((ELSEWHERE, 80)) != 0


@pytest.mark.parametrize(
    ("inherited", "begin"),
    [
        ({"CARDIALIGN_OFFLINE": "1"}, "import cardialign"),
        ({}, "from cardialign.cluster.environment.handed_on import adopt; adopt({'CARDIALIGN_OFFLINE': '1'})"),
    ],
    ids=["a process that inherits the switch", "a worker that the driver hands it on to"],
)
def test_other_processes_of_ours_stay_offline_too(inherited: dict[str, str], begin: str) -> None:
    code = f"{begin}\nimport socket\ntry:\n    socket.create_connection(('{ELSEWHERE}', 80), timeout=1)\n"
    code += "except ValueError as error:\n    print(error)"
    environment = {**os.environ, offline.SWITCH: "", **inherited}
    if not inherited:
        del environment[offline.SWITCH]
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "CARDIALIGN_OFFLINE forbids it" in done.stdout


@pytest.mark.processes
@pytest.mark.parametrize(
    "words",
    [
        ["shards", "verify", f"http://{ELSEWHERE}/set"],
        ["shards", "verify", "https://example.org/set"],
        ["registry", "list", "--tracking-uri", f"http://{ELSEWHERE}:5000"],
        ["text-bank", "build", "SET", "--encoder", "somebody/some-model"],
        ["status", "name", "--address", f"http://{ELSEWHERE}:8265"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_command_says_what_it_may_not_connect_to_and_does_not(shards: Path, tmp_path: Path, words: list[str]) -> None:
    """What is written by a hook before ours is what was asked for; nothing may have been answered."""
    given = [str(shards) if word == "SET" else word for word in words]
    environment = {**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "cardialign", *given, "--offline", "--json"],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert done.returncode != 0 and not answer["ok"] and "Traceback" not in done.stderr
    assert "defect of ours" not in answer["remedy"], answer
    said = answer["problem"] + answer["remedy"]
    assert "CARDIALIGN_OFFLINE" in said or "offline" in said.lower() or "not on this machine" in said, said


@pytest.mark.parametrize("option", ["--offline", "--offl"])
def test_the_option_counts_however_short_it_is_written(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cardialign: Callable[..., Answer]
) -> None:
    for name in offline.OF_OTHERS:
        monkeypatch.setenv(name, os.environ.get(name, "0"))
    monkeypatch.delenv(offline.SWITCH, raising=False)
    monkeypatch.setattr(offline, "_watching", [True])  # no hook: it would stay for the tests behind
    seen = []
    monkeypatch.setattr(
        "cardialign.cluster.commands.recipes.list.run", lambda args: seen.append(offline.is_offline()) or {}
    )
    try:
        cardialign("recipes", "list", option)
    finally:
        os.environ.pop(offline.SWITCH, None)
    assert seen == [True]


@pytest.mark.parametrize(
    "query", [f"host={ELSEWHERE}", f"hostaddr={ELSEWHERE}", f"host=localhost,{ELSEWHERE}:5433", "service=elsewhere"]
)
def test_no_parameter_of_a_database_leads_its_driver_off_the_machine(
    switched_on: pytest.MonkeyPatch, query: str
) -> None:
    """libpq is written in C: Python's hooks do not see it connect."""
    with pytest.raises(UserError, match=f"(?:{ELSEWHERE}|elsewhere) was to be connected to"):
        _check_database(f"postgresql://localhost/mlflow?{query}")
    switched_on.setenv("PGHOSTADDR", ELSEWHERE)
    with pytest.raises(UserError, match=f"{ELSEWHERE} was to be connected to"):
        _check_database("postgresql://localhost/mlflow?sslmode=require")
