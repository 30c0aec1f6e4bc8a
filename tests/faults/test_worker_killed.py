"""A run over two sets whose worker is killed, on a real Ray with two workers, ends as an undisturbed one."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.runs.driver import train_on_ray
from cardialign.cluster.watching.metrics import exported
from cardialign.cluster.watching.state import run_state
from cardialign.data_shards.files import read_json
from cardialign.pretrain.config import RunConfig, load_config
from cardialign.pretrain.run.files import ATTEMPTS, WORKERS
from cardialign.pretrain.run.trace import read_trace
from tests.support.processes import run_ranks
from tests.support.tiny_set import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def config_for(*data: str) -> RunConfig:
    return load_config("cardialign-demo", [*SMALL, *data])


def train_undisturbed(rank: int, world: int, values: dict[str, Any], run_dir: str) -> None:
    """The same loop without Ray: two plain processes over gloo."""
    from cardialign.pretrain.config import parse_config
    from cardialign.pretrain.run.observer import NullObserver
    from cardialign.pretrain.training.loop import train

    train(parse_config(values), Path(run_dir), NullObserver())


def losses(run_dir: Path) -> dict[int, float]:
    return {int(line["step"]): float(line["loss"]) for line in read_trace(run_dir)}


def starts(run_dir: Path) -> int:
    return len((run_dir / ATTEMPTS).read_text().splitlines())


@pytest.mark.timeout(480)
def test_run_whose_worker_is_killed_finishes_by_itself_with_the_same_loss_trace(
    two_banked_sets: tuple[Path, Path], tmp_path: Path
) -> None:
    large, small = two_banked_sets
    config = config_for(f"data.mixture=[{{shards: {large}, weight: 3}}, {{shards: {small}}}]")
    killed: list[int] = []
    pages: list[str] = []

    def kill_one_worker(line: dict[str, Any]) -> None:
        if line["step"] >= 12 and not killed:
            note = read_json(tmp_path / "disturbed" / WORKERS / "rank-1.json")
            assert note is not None
            os.kill(note["pid"], signal.SIGKILL)
            killed.append(note["pid"])

    with exported(tmp_path / "disturbed", config.name, 0) as address:

        def kill_one_worker_and_scrape(line: dict[str, Any]) -> None:
            kill_one_worker(line)
            assert address is not None
            with urllib.request.urlopen(address, timeout=10) as answer:
                pages.append(answer.read().decode())

        result = train_on_ray(config, tmp_path / "disturbed", workers=2, on_step=kill_one_worker_and_scrape)
    assert killed and result.restarts == 1 and not result.stopped
    assert result.steps == 60 and starts(tmp_path / "disturbed") == 2
    resumed = read_json(tmp_path / "disturbed" / "result.json")
    assert resumed is not None and resumed["resumed_from"] >= 10, "it went on from a checkpoint, not from the beginning"

    state = run_state(tmp_path / "disturbed")
    assert state.state == "finished" and state.step == state.steps == 60 and state.checkpoint.step == 60
    (restart,) = state.restarts
    assert "rank 1: its process was killed" in restart.cause, restart
    assert [rank.world_size for rank in state.ranks] == [2, 2] and state.cause is not None
    assert 'cardialign_restarts_total{run="cardialign-demo"} 0.0' in pages[0]
    assert 'cardialign_restarts_total{run="cardialign-demo"} 1.0' in pages[-1]
    assert 'cardialign_step_p50_seconds{rank="1",run="cardialign-demo"}' in pages[-1]

    run_ranks(2, train_undisturbed, config.resolved(), str(tmp_path / "undisturbed"), deadline=120, init=False)
    disturbed, undisturbed = losses(tmp_path / "disturbed"), losses(tmp_path / "undisturbed")
    assert sorted(disturbed) == list(range(1, 61))
    assert disturbed == undisturbed, "the loss trace is the same, bit for bit"
