"""Real runs of every further encoder: what a run promises does not depend on which encoder it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.pretrain.config import RunConfig, parse_config
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.checkpoints.files import list_checkpoints
from cardialign.pretrain.training.checkpoints.load import load_weights
from cardialign.pretrain.training.loop import train
from tests.support.processes import run_ranks
from tests.support.tiny_shards import config_for, make_shards

pytestmark = [pytest.mark.processes, pytest.mark.slow]

RESNET = {"name": "resnet1d", "width": 4, "heads": 2, "embedding_dim": 16}
VIT = {"name": "vit1d", "width": 16, "depth": 1, "heads": 2, "patches": "lead", "embedding_dim": 16}
S4 = {"name": "s4", "width": 16, "depth": 1, "embedding_dim": 16}
SEEING = {**RESNET, "norm": "micro-batch"}


def config(shards: Path, encoder: dict[str, Any], **training: Any) -> RunConfig:
    values = config_for(shards, steps=3, checkpoint_every=2, **training).resolved()
    return parse_config({**values, "encoder": encoder})


class Stopper(NullObserver):
    """Asks to stop before the second step."""

    asked = 0

    def should_stop(self) -> bool:
        self.asked += 1
        return self.asked > 1


def one_worker(rank: int, world: int, shards: Path, root: Path) -> None:
    for name, encoder in (("resnet", RESNET), ("vit", VIT), ("s4", S4)):
        train(config(shards, encoder, zero_stage=1), root / f"{name}-one", NullObserver())


def two_workers(rank: int, world: int, shards: Path, root: Path) -> None:
    for name, encoder in (("resnet", RESNET), ("vit", VIT), ("s4", S4)):
        train(config(shards, encoder, zero_stage=3, micro_batch=3), root / f"{name}-two", NullObserver())
    seeing = config(shards, SEEING, zero_stage=3, micro_batch=4)
    train(seeing, root / "seeing", NullObserver())
    train(seeing, root / "stopped", Stopper())
    train(seeing, root / "stopped", NullObserver())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    shards = make_shards(root / "shards")
    run_ranks(1, one_worker, shards, root, init=False, deadline=150)
    run_ranks(2, two_workers, shards, root, init=False, deadline=150)
    return root


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_trace(run)]


@pytest.mark.parametrize("encoder", ["resnet", "vit", "s4"])
def test_two_workers_with_micro_batches_and_whole_parameters_nowhere_lose_as_one_does(runs: Path, encoder: str) -> None:
    one, two = losses(runs / f"{encoder}-one"), losses(runs / f"{encoder}-two")
    assert len(one) == 3
    np.testing.assert_allclose(two, one, rtol=2e-5)


def test_a_stopped_run_with_published_batch_norms_continues_as_if_nothing_had_been(runs: Path) -> None:
    assert losses(runs / "stopped") == losses(runs / "seeing")
    last, again = (load_weights(list_checkpoints(runs / name)[-1].path) for name in ("seeing", "stopped"))
    moved = [name for name in last if name.endswith("running_mean")]
    assert len(moved) == 20 and not any(name.endswith("seen") for name in last)
    for name, tensor in last.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)
    assert all(bool(last[name].any()) for name in moved)
