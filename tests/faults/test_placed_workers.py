"""Workers on the nodes that were asked for: one on each, on those with a label; and what is said when none fits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest

from cardialign.cluster.runs.driver import train_on_ray
from cardialign.cluster.runs.placement import Placement
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import RunConfig, load_config
from tests.support.ray_cluster import ray_head, ray_node
from tests.support.tiny_set import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.deployment, pytest.mark.timeout(10800)]


def config_of(shards: Path) -> RunConfig:
    return load_config("simclr-tiny", [*SMALL, f"data.shards={shards}", "training.steps=4"])


def test_workers_are_spread_and_sent_to_the_nodes_that_were_asked_for(
    plain_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_worker_register_timeout_seconds", "300")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    more = ["--labels", "zone=b,disk=fast"]
    with (
        ray_head(tmp_path, environment, cpus=4) as address,
        ray_node(tmp_path, address, environment, more=more, cpus=4),
    ):
        nodes: list[dict[int, int]] = []

        def run(name: str, workers: int, placement: Placement) -> dict[int, int]:
            """Rank -> the process of its node, as the run was at its first step."""
            seen: dict[int, int] = {}

            def look(_: object) -> None:
                for note in (tmp_path / name / "workers").glob("rank-*.json"):
                    told = json.loads(note.read_text())
                    seen[told["rank"]] = psutil.Process(told["pid"]).ppid()

            config, run_dir = config_of(plain_shards), tmp_path / name
            train_on_ray(config, run_dir, workers=workers, address=address, placement=placement, on_step=look)
            nodes.append(seen)
            return seen

        apart = run("apart", 2, Placement(spread="strict", cpus_per_worker=1))
        assert len(set(apart.values())) == 2, "each on a node of its own"
        there = run("there", 2, Placement(labels={"zone": "b"}, cpus_per_worker=2, spread="pack"))
        assert len(set(there.values())) == 1
        log = next((tmp_path / "there" / "logs").glob("*/rank-0.log")).read_text()
        assert "threads=" in log and "rank=0 threads=" in log

        for placement, told in (
            (
                Placement(spread="strict", wait_minutes=0.05),
                "asked: 3 workers with 1 CPU each, each on a node of its own",
            ),
            (Placement(labels={"zone": "c"}, wait_minutes=0.05), "room for 0 of 3; no node has zone=c, only b"),
            (Placement(gpu_kind="H100", wait_minutes=0.05), "room for 0 of 3; no node has a H100"),
            (Placement(cpus_per_worker=3, wait_minutes=0.05), "room for 2 of 3"),
        ):
            with pytest.raises(UserError) as raised:
                train_on_ray(
                    config_of(plain_shards), tmp_path / "none", workers=3, address=address, placement=placement
                )
            assert "waiting for nodes: asked: 3 workers" in raised.value.problem and told in raised.value.problem
            assert "there: 4 CPUs on " in raised.value.problem
