"""A run that loses a node goes on with what is there, and takes the node in again when it is back: on a real Ray of two
nodes, with the loss of an undisturbed run at every step."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.drills.patience import Patience
from cardialign.cluster.environment.sizes import Sizes
from cardialign.cluster.runs.driver import train_on_ray
from cardialign.cluster.runs.placement import Placement
from cardialign.cluster.runs.planned import FOLDER, stepped, write_plan
from cardialign.cluster.watching.decisions import read_decisions
from cardialign.cluster.watching.state import run_state
from cardialign.pretrain.config import RunConfig, load_config
from cardialign.pretrain.run.files import ATTEMPTS
from cardialign.pretrain.run.trace import read_trace
from tests.faults.test_worker_killed import train_undisturbed
from tests.support.processes import run_ranks
from tests.support.ray_cluster import PATIENT, ray_head, ray_node
from tests.support.tiny_set import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.deployment, pytest.mark.timeout(10800)]

SHRINKS_WITHIN = 45.0
STEPS = 80
PACES = (0.3, 3.0, 0.05)
"""Seconds that a step takes at least: with both nodes, with one while the other is away, and again with both."""


def config_of(shards: Path) -> RunConfig:
    return load_config("cardialign-demo", [*SMALL, f"data.shards={shards}", f"training.steps={STEPS}"])


def family(process: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{process}/task/{process}/children")
    below = [int(each) for each in children.read_text().split()] if children.exists() else []
    return [process, *(each for child in below for each in family(child))]


class Disturber(threading.Thread):
    """Kills every process of a node at once, and starts the node again when the run has gone on without it."""

    def __init__(self, run_dir: Path, folder: Path, node: int, start_again: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.run_dir, self.folder, self.node, self.start_again = run_dir, folder, node, start_again
        self.lost_at = 0.0
        self.over = threading.Event()
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            self._until(lambda: self._step() >= 22)
            write_plan(self.folder, pace=PACES[1])
            at = self._step()
            self.lost_at = time.time()
            for process in family(self.node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self._until(lambda: bool(read_decisions(self.run_dir)) and self._step() > at)
            write_plan(self.folder, pace=PACES[2])
            self.start_again()
        except BaseException as error:
            self.problem = error

    def _step(self) -> int:
        return max((int(line["step"]) for line in read_trace(self.run_dir)), default=0)

    def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            assert not self.over.wait(0.2), "the run ended before"


def test_a_run_shrinks_when_a_node_is_lost_and_grows_when_it_is_back(
    banked_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    environment = {**PATIENT, **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}}
    monkeypatch.setenv(FOLDER, str(tmp_path / "plan"))
    write_plan(tmp_path / "plan", pace=PACES[0])
    config, run_dir = config_of(banked_shards), tmp_path / "run"
    with ray_head(tmp_path, environment, cpus=1) as address, contextlib.ExitStack() as nodes:

        def start() -> int:
            return nodes.enter_context(ray_node(tmp_path, address, environment)).pid

        disturber = Disturber(run_dir, tmp_path / "plan", start(), start)
        patience = Patience(300)
        while "Ray runtime started" not in (tmp_path / "ray-node.log").read_text():
            assert not patience.over(), (tmp_path / "ray-node.log").read_text()
            time.sleep(0.5)
        disturber.start()
        try:
            placement = Placement(grow_minutes=0.2)
            result = train_on_ray(config, run_dir, workers=Sizes(1, 2), address=address, placement=placement)
        finally:
            disturber.over.set()
            disturber.join(120)
    assert disturber.problem is None, disturber.problem
    assert result.steps == STEPS and result.workers == 2 and result.restarts == 1
    shrunk, grown = read_decisions(run_dir)
    assert (shrunk.kind, shrunk.before, shrunk.after, shrunk.failures) == ("resize", 2, 1, 0)
    assert "is gone" in shrunk.cause and shrunk.time - disturber.lost_at < SHRINKS_WITHIN
    assert (grown.kind, grown.before, grown.after, grown.planned) == ("resize", 1, 2, True)
    assert [each.cause for each in run_state(run_dir).restarts] == [shrunk.cause, grown.cause]
    worlds = [json.loads(line)["world_size"] for line in (run_dir / ATTEMPTS).read_text().splitlines()]
    assert worlds == [2, 1, 2]

    run_ranks(2, train_undisturbed, config.resolved(), str(tmp_path / "undisturbed"), deadline=240, init=False)
    found, expected = read_trace(run_dir), read_trace(tmp_path / "undisturbed")
    assert [line["digest"] for line in found] == [line["digest"] for line in expected], "the same records, once each"
    apart = max(abs(a["loss"] - b["loss"]) for a, b in zip(found, expected, strict=True))
    assert apart < 1e-6, apart
    done = [step for _, step in stepped(tmp_path / "plan")]
    twice = [step for step in set(done) if done.count(step) > 1]
    assert len(twice) <= 2 * 10 and max(twice, default=0) <= shrunk.step + 1, "growing did no step a second time"
