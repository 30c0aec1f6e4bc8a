"""How Ray is led while it starts here: its services live in sessions of their own, and may take their time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ray._private import services as ray_services

from cardialign.cluster.environment import starting

services: Any = ray_services  # looked up while it is patched


def program(path: Path, words: str) -> Path:
    path.write_text(f"#!/bin/sh\n{words}\n")
    path.chmod(0o755)
    return path


def unknown_at_first(asks: int) -> Any:
    asked: list[str] = []

    def get_node(address: str, node: str) -> dict[str, str]:
        asked.append(node)
        if len(asked) <= asks:
            raise RuntimeError(f"node {node} is not known")
        return {"node": node}

    return get_node


def test_a_node_whose_services_live_may_take_its_time_and_one_that_died_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(services, "get_node", unknown_at_first(4))
    plain = services.get_node, services.ConsolePopen
    with starting.led_by_us():
        living = services.ConsolePopen([str(program(tmp_path / "gcs_server", "exec sleep 60"))])
        assert os.getsid(living.pid) == living.pid, "a signal to our group does not reach it"
        assert services.get_node("127.0.0.1:1", "abc") == {"node": "abc"}, "Ray alone gives up after 30 s"
        ended = services.ConsolePopen([str(program(tmp_path / "monitor", "exit 1"))])
        assert ended.wait(30) == 1
    assert (services.get_node, services.ConsolePopen) == plain

    monkeypatch.setattr(services, "get_node", unknown_at_first(10**9))
    with starting.led_by_us():
        assert services.ConsolePopen([str(program(tmp_path / "raylet", "exit 1"))]).wait(30) == 1
        with pytest.raises(RuntimeError, match="not known"):
            services.get_node("127.0.0.1:1", "abc")
    living.kill()
    living.wait(30)


def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "START_SECONDS", 0.0)
    monkeypatch.setattr(services, "get_node", unknown_at_first(10**9))
    with starting.led_by_us(), pytest.raises(RuntimeError, match="not known"):
        services.get_node("127.0.0.1:1", "abc")
