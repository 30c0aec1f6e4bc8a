"""How Ray is led while it starts here: its services live in sessions of their own, and may take their time."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from ray._private import services as ray_services
from ray._private.parameter import RayParams

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
        raylet = str(program(tmp_path / "raylet", "exit 3"))
        lines = ["[2026-11-27 10:12:38,923 C 3497 3497] (raylet) node.cc:3: no place for it", "*** trace ***", "main"]
        (tmp_path / "raylet.out").write_text("\n".join(["one", *lines]))
        assert services.ConsolePopen([raylet, f"--stdout_filepath={tmp_path / 'raylet.out'}"]).wait(30) == 3
        with pytest.raises(Exception, match=r"raylet ended with code 3: .*no place for it$"):
            services.get_node("127.0.0.1:1", "abc")
    living.kill()
    living.wait(30)


def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "START_SECONDS", 0.0)
    monkeypatch.setattr(services, "get_node", unknown_at_first(10**9))
    with starting.led_by_us(), pytest.raises(RuntimeError, match="not known"):
        services.get_node("127.0.0.1:1", "abc")


def test_a_raylet_is_told_where_its_agents_listen_and_waits_for_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It ends after 15 s without a port of theirs, and two Python programs take longer on a busy machine."""
    commands: list[Any] = []
    monkeypatch.setattr(services, "ConsolePopen", lambda words, **options: commands.append(words))
    told = RayParams(metrics_agent_port=0, runtime_env_agent_port=0, metrics_export_port=0)
    with starting.led_by_us():
        told.update_pre_selected_port()
        agent = f"--dashboard_agent_command=agent.py --listen-port={told.dashboard_agent_listen_port} --x"
        services.ConsolePopen(["/ray/raylet", agent])
        services.ConsolePopen(["/ray/gcs_server", agent])
    ports = {getattr(told, name) for name in starting.AGENT_PORTS}
    assert len(ports) == 4 and all(1024 < port < 32768 for port in ports) and ports <= told.reserved_ports
    assert commands == [
        ["/ray/raylet", agent, f"--dashboard_agent_listen_port={told.dashboard_agent_listen_port}"],
        ["/ray/gcs_server", agent],
    ]


def test_the_raylet_of_this_ray_has_all_options_of_where_its_agents_listen() -> None:
    program = Path(services.RAYLET_EXECUTABLE).read_bytes()
    assert all(f"FLAGS_{name}".encode() in program for name in starting.AGENT_PORTS)


def test_a_port_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(starting, "_PORTS", range(port, port + 1))
        assert starting.free_ports(1) == []
