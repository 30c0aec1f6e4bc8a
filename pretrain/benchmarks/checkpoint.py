"""For how long a checkpoint of a recipe holds up the steps: written in the step, and behind the steps that follow.

The real engine, files and disk, in this process alone: one worker, whose share is that of all ranks.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cardialign.data_shards.files import names_below
from cardialign.data_shards.order.global_order import ORDER_VERSION
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.benchmarks.noise import NoiseBank, noise_batch
from cardialign.pretrain.config import RunConfig, load_config
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.training.checkpoints.background import Checkpoints
from cardialign.pretrain.training.checkpoints.files import committed_path
from cardialign.pretrain.training.checkpoints.state import TrainerState
from cardialign.pretrain.training.engine import Workers, make_engine, optimizer_step, plan_batches, start_workers
from cardialign.pretrain.training.gradient_cache import accumulate_gradients

WAYS = ("step", "background")
ROWS = 4
"""Of noise in a step: just so many that every weight gets a gradient."""


def measure_checkpoint(
    recipe: str, where: Path, *, overrides: Sequence[str] = (), rounds: int = 5, spec: SignalSpec | None = None
) -> dict[str, Any]:
    """Median seconds for which a checkpoint holds up the steps, each way, and until it is committed; their `ratio`.

    where: a folder on the disk that is measured; what is written there is removed. Both ways take turns, so that a busy
    machine is busy for both; the first of each, which makes files and memory for the first time, is told apart
    (`first`) and not counted. Raises UserError as a run does: an encoder that is not here, a disk that is full.
    """
    workers = start_workers()
    config = load_config(recipe, [*overrides, f"training.global_batch={ROWS}", "training.micro_batch=null"])
    step = _Step(config, spec or SignalSpec(500, 10), workers)
    where.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".bench-checkpoint-", dir=where))
    try:
        ways = {way: _Way(way, config, step.engine, folder / way, workers) for way in WAYS}
        for _ in range(rounds + 1):
            for way in ways.values():
                step()
                way.once()
        newest = committed_path(folder / "step", rounds + 1)
        size = sum((newest / name).stat().st_size for name in names_below(newest))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures: dict[str, Any] = {
        "recipe": config.name,
        "device": torch.cuda.get_device_name(workers.device) if workers.device.type == "cuda" else "cpu",
        "zero_stage": config.training.zero_stage,
        "bytes": size,
        "rounds": rounds,
    }
    for name, way in ways.items():
        pauses, commits = way.pauses[1:], way.commits[1:]
        figures[name] = {
            "pause_seconds": statistics.median(pauses), "slowest_seconds": max(pauses),
            "first_seconds": way.pauses[0], "commit_seconds": statistics.median(commits),
        }  # fmt: skip
    return figures | {"ratio": figures["background"]["pause_seconds"] / figures["step"]["pause_seconds"]}


class _Step:
    """The engine of a recipe, and one optimizer step on records of noise."""

    def __init__(self, config: RunConfig, spec: SignalSpec, workers: Workers) -> None:
        torch.manual_seed(config.seed)
        method = create_method(config, spec)
        draws = Draws(config.seed, 0, slice(0, ROWS))
        bank: Any = NoiseBank(config, ROWS) if method.reports else None
        inputs = method.inputs(noise_batch(config, spec, ROWS), bank, draws)
        self.plan = plan_batches(ROWS, workers.world_size, None)
        parts = tuple(method.learning_rates(0))
        self.engine = make_engine(config, method, self.plan, workers.device, parts=parts)
        self.engine.train()
        self.inputs = {name: tensor.to(workers.device) for name, tensor in inputs.items()}
        self.loss: Callable[..., Any] = partial(method.loss, inputs=self.inputs, group=None)

    def __call__(self) -> None:
        counts = self.engine.module.counts(self.inputs)
        accumulate_gradients(self.engine, self.inputs, self.loss, self.plan, counts)
        optimizer_step(self.engine)


class _Way:
    """Checkpoints of one engine, written one way."""

    def __init__(self, way: str, config: RunConfig, engine: Any, run_dir: Path, workers: Workers) -> None:
        self.config, self.run_dir = config, run_dir
        training = config.training.model_copy(update={"checkpoint_writing": way})
        self.checkpoints = Checkpoints(engine, run_dir, workers, training)
        self.pauses: list[float] = []
        self.commits: list[float] = []

    def once(self) -> None:
        resolved = json.loads(json.dumps(self.config.resolved()))
        state = TrainerState(len(self.pauses) + 1, "0" * 64, resolved, "noise", 1, ORDER_VERSION)
        began = time.perf_counter()
        self.checkpoints.save(state)
        self.pauses.append(time.perf_counter() - began)
        self.checkpoints.finish()
        self.commits.append(time.perf_counter() - began)
