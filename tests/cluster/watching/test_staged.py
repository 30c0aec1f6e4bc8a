"""Four real runs of two processes, each made slow in one way: the files that they leave name the cause.

What is slow is planted around the real loop, shards and checkpoints: a sleep where the slow part would be.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.watching.cause import Cause
from cardialign.cluster.watching.state import RunState, run_state
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training import loop
from cardialign.pretrain.training.checkpoints import files
from tests.support.processes import run_ranks
from tests.support.tiny_shards import config_for, make_shards

pytestmark = [pytest.mark.processes, pytest.mark.slow]
SLOW_SHARD = 1


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def slow_shard(rank: int) -> Iterator[None]:
    real = ShardSet.read_payload

    def slowly(self: ShardSet, row: int) -> Any:
        if int(self.shard[row]) == SLOW_SHARD:
            time.sleep(0.2)
        return real(self, row)

    with replaced(ShardSet, "read_payload", slowly):
        yield


@contextlib.contextmanager
def slow_forward(rank: int, slow: tuple[int, ...], seconds: float = 0.4) -> Iterator[None]:
    """The method's forward takes so much longer on the `slow` ranks, as on an accelerator that is that much slower."""
    real = loop.create_method

    def hooked(*args: Any) -> Any:
        method = real(*args)
        if rank in slow:
            method.register_forward_pre_hook(lambda *_: time.sleep(seconds))
        return method

    with replaced(loop, "create_method", hooked):
        yield


@contextlib.contextmanager
def slow_disk(rank: int) -> Iterator[None]:
    real = files.sync

    def slowly(path: Path) -> None:
        time.sleep(0.15)
        real(path)

    with replaced(files, "sync", slowly):
        yield


def staged_runs(rank: int, world: int, shards: Path, root: Path) -> None:
    def run(name: str, zero_stage: int, checkpoint_every: int = 100) -> None:
        config = config_for(shards, steps=12, checkpoint_every=checkpoint_every, zero_stage=zero_stage)
        loop.train(config, root / name, NullObserver())

    run("undisturbed", zero_stage=2)
    with slow_shard(rank):
        run("shard", zero_stage=1)
    with slow_forward(rank, slow=(1,)):
        run("rank", zero_stage=2)
    with slow_forward(rank, slow=(1,)):
        run("rank-zero-3", zero_stage=3)
    with slow_disk(rank):
        run("disk", zero_stage=1, checkpoint_every=4)
    with slow_forward(rank, slow=(0, 1), seconds=1.0):
        run("compute", zero_stage=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("staged")
    run_ranks(2, staged_runs, make_shards(root / "shards"), root, init=False, deadline=200)
    return root


@pytest.fixture(scope="module")
def states(root: Path) -> dict[str, RunState]:
    return {path.name: run_state(path) for path in root.iterdir() if path.name != "shards"}


def cause(state: RunState) -> Cause:
    assert state.cause is not None
    return state.cause


def test_a_slow_shard_is_named(states: dict[str, RunState]) -> None:
    found = cause(states["shard"])
    assert (found.word, found.kind, found.shard) == ("data", "shard", f"shard-{SLOW_SHARD:06d}.tar"), found.line
    assert states["shard"].slowest_shard == found.shard and found.shard in found.line
    assert found.shares["data"] > 0.4, found.shares


@pytest.mark.parametrize("name", ["rank", "rank-zero-3"])
def test_a_slow_rank_is_named_though_it_computes_alone_and_the_others_stand_in_collectives(
    states: dict[str, RunState], name: str
) -> None:
    found = cause(states[name])
    assert (found.word, found.rank) == ("straggler", 1), found.line
    assert states[name].slowest_rank == {"rank": 1, "host": found.host} and found.host in found.line
    first, second = states[name].ranks
    assert first.exchange > 0.3 * first.window_steps, "the fast rank waits for the slow one in its collectives"
    assert second.own > 0.4 * second.window_steps > first.own


def test_a_slow_disk_for_checkpoints_is_named_with_its_pause(states: dict[str, RunState]) -> None:
    found = cause(states["disk"])
    assert found.word == "checkpoint", found.line
    pause = states["disk"].checkpoint.pause_seconds
    assert pause is not None and pause > 1.0 and states["disk"].checkpoint.step == 12


def test_work_that_all_ranks_share_is_compute(states: dict[str, RunState]) -> None:
    found = cause(states["compute"])
    assert found.word == "compute" and found.rank is None, found.line
    assert found.shares["compute"] > 0.5, found.shares


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shard", f"data: .*from shard-{SLOW_SHARD:06d}.tar"),
        ("rank", "straggler: rank 1 "),
        ("disk", "checkpoint: "),
        ("compute", "compute: "),
    ],
)
def test_status_names_the_cause(cardialign: Callable[..., Any], root: Path, name: str, words: str) -> None:
    told = cardialign("status", root / name, plain=True).out
    assert re.search(f"^slow because +{words}", told, re.MULTILINE), told
    assert re.search("^data, a step +queue .* ms, read .* ms, decode .* ms$", told, re.MULTILINE), told


def test_what_is_slow_changes_no_bit_of_the_run(root: Path) -> None:
    def trace(name: str) -> list[tuple[float, str]]:
        return [(line["loss"], line["digest"]) for line in read_trace(root / name)]

    assert len(trace("undisturbed")) == 12
    assert trace("undisturbed") == trace("rank") == trace("compute") and trace("shard") == trace("disk")
