"""One small configuration on every topology: a method's losses must not know how its global batch was cut."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.pretrain.config import parse_config
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.training.checkpoints.load import load_weights
from cardialign.pretrain.training.loop import train
from tests.support.processes import PRELOAD, run_ranks

STEPS, STOP = 4, 2
BATCH = 10
ENGINE = [
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "cardialign.pretrain.training.loop",
]
"""What a rank that trains imports before its first step: the fork server does it once."""

ONE_WORKER: dict[str, dict[str, Any]] = {
    "whole": {"zero_stage": 1},
    "one by one": {"zero_stage": 0, "micro_batch": 1},
}
TWO_WORKERS: dict[str, dict[str, Any]] = {
    "two, stage 1": {"zero_stage": 1},
    "two, stage 2": {"zero_stage": 2, "micro_batch": 3},
    "two, stage 3": {"zero_stage": 3, "micro_batch": 2},
    "stopped": {"zero_stage": 3, "micro_batch": 2},
}


class _Stops(NullObserver):
    def __init__(self, after: int | None) -> None:
        self.after, self.asked = after, 0

    def should_stop(self) -> bool:
        self.asked += 1
        return self.after is not None and self.asked > self.after


def _trained(rank: int, world: int, values: dict[str, Any], root: Path, wanted: dict[str, dict[str, Any]]) -> None:
    for name, training in wanted.items():
        config = parse_config({**values, "training": {**values["training"], **training}})
        if name == "stopped":
            train(config, root / name, _Stops(STOP))
        result = train(config, root / name, NullObserver())
        assert result.steps == STEPS and (name != "stopped" or result.resumed_from == STOP)
        if rank == 0:
            np.savez(root / name / "weights.npz", **{k: v.numpy() for k, v in load_weights(result.checkpoint).items()})


def run_topologies(values: Mapping[str, Any], root: Path, deadline: float = 240) -> None:
    """Train `values`, the whole configuration with its `data.shards`, for 4 steps of 10 records in fp32: whole, record
    by record, and on two workers under ZeRO 1, 2 and 3; one is stopped after 2 steps and goes on.

    Traces lie in `root / NAME`. `values["training"]` may set what is not set here.
    """
    PRELOAD.extend(name for name in ENGINE if name not in PRELOAD)
    fixed = {"global_batch": BATCH, "steps": STEPS, "epochs": None, "precision": "fp32", "log_every": 1}
    training = {**values.get("training", {}), **fixed, "checkpoint_every": STOP}
    whole = {**values, "training": training}
    run_ranks(1, _trained, whole, root, ONE_WORKER, init=False, deadline=deadline)
    run_ranks(2, _trained, whole, root, TWO_WORKERS, init=False, deadline=deadline)


def trace(run_dir: Path, figure: str = "loss") -> list[float]:
    return [json.loads(line)[figure] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def check_topologies(root: Path, figures: Sequence[str], rtol: float = 5e-5) -> None:
    """Every figure of every run is that of the whole batch on one worker; the stopped run is the other bit for bit."""
    for figure in figures:
        reference = trace(root / "whole", figure)
        assert len(reference) == STEPS and len(set(reference)) == STEPS, f"{figure} stands still: {reference}"
        for name in [*ONE_WORKER, *TWO_WORKERS]:
            np.testing.assert_allclose(trace(root / name, figure), reference, rtol=rtol, err_msg=f"{name}: {figure}")
        assert trace(root / "stopped", figure) == trace(root / "two, stage 3", figure)
    with np.load(root / "stopped" / "weights.npz") as stopped, np.load(root / "two, stage 3" / "weights.npz") as other:
        assert set(stopped) == set(other)
        assert all(np.array_equal(stopped[name], other[name]) for name in stopped)
