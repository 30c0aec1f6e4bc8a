"""The training loop: shards in, checkpoints and a loss trace out. One loop for every method, ZeRO stage, precision and world size."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.order.contract import Order
from cardialign.data_shards.order.global_order import ORDER_VERSION
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.selection import Selection
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import EMPTY_DIGEST, Batch, Position, ReadAhead, ShardStream
from cardialign.data_shards.text.bank import TextBank
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.methods import create_objective
from cardialign.pretrain.methods.dual import DualEncoder
from cardialign.pretrain.run.observer import Reporter
from cardialign.pretrain.run.trace import TraceWriter
from cardialign.pretrain.training.alarms import CollapseAlarm, effective_rank
from cardialign.pretrain.training.batch import step_inputs
from cardialign.pretrain.training.checkpoints import state as resume
from cardialign.pretrain.training.checkpoints.files import committed_path
from cardialign.pretrain.training.collectives import first_error, highest, on_rank_zero
from cardialign.pretrain.training.data import open_bank, open_data, total_steps
from cardialign.pretrain.training.engine import (
    Workers,
    make_engine,
    optimizer_step,
    plan_batches,
    set_learning_rate,
    start_workers,
)
from cardialign.pretrain.training.gradient_cache import accumulate_gradients
from cardialign.pretrain.training.quarantine import Quarantine
from cardialign.pretrain.training.schedule import learning_rate, warmup_steps
from cardialign.pretrain.training.step_clock import StepClock

log = logging.getLogger(__name__)

GO, SUBSTITUTE, STOP, FAILED = range(4)
"""What a rank asks for before a step; the highest of all ranks is what all do."""


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind. `seconds` and `records_per_second` cover this start only, checkpoints included; `data_wait_share` is the share of that time
    in which the step waited for data. `stopped`: asked to stop before the last step, and can be continued from `checkpoint`."""

    steps: int
    total_steps: int
    final_loss: float
    checkpoint: Path
    digest: str
    seconds: float
    records_per_second: float
    data_wait_share: float
    stopped: bool
    resumed_from: int


def train(
    config: RunConfig,
    run_dir: Path,
    reporter: Reporter,
    *,
    bank: TextBank | None = None,
    on_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train to the last step, from the newest verified checkpoint in `run_dir` or from the start; called on every rank.

    bank     text bank when the caller has one open; otherwise the shard set's bank for `config.text` is opened.
    on_step  called on every rank after each finished step (1-based).
    Raises UserError (CollapseError, CheckpointError, DataError): the last committed checkpoint stays in `run_dir`.
    """
    workers = start_workers()
    run_dir = Path(run_dir)
    shard_set, selection, order = open_data(config)
    run = _Run(config, run_dir, reporter, workers, shard_set, selection, order, bank or open_bank(config))
    run.set_up()
    return run.steps(on_step)


@dataclass
class _Run:
    """The parts of one run; `set_up` brings them to the step where it continues, `steps` trains."""

    config: RunConfig
    run_dir: Path
    reporter: Reporter
    workers: Workers
    shard_set: ShardSet | JoinedSets
    selection: Selection
    order: Order
    bank: TextBank
    start: int = 0
    digest: str = EMPTY_DIGEST
    loss: float | None = None
    checkpoint: Path | None = None
    engine: Any = None
    quarantine: Quarantine | None = None

    def set_up(self) -> None:
        config, workers = self.config, self.workers
        self.last = total_steps(config, len(self.selection.rows))
        self.plan = plan_batches(config.training.global_batch, workers.world_size, config.training.micro_batch)
        on_rank_zero(self._write_config)
        torch.manual_seed(config.seed)
        model = DualEncoder(config, self.shard_set.spec)
        point = resume.find_resume_point(self.run_dir, config, self.selection.fingerprint, ORDER_VERSION, workers)
        self.engine = make_engine(
            config, model, self.plan, workers.device, universal=point is not None and point.universal
        )
        self.engine.train()
        resume.seed_random(config.seed, workers.rank, 0)
        if point is not None:
            resume.load_checkpoint(self.engine, point, workers)
            state = point.state
            self.start, self.digest, self.loss, self.checkpoint = state.step, state.digest, state.loss, point.path
        fraction = config.data.max_bad_fraction
        if fraction > 0:
            self.quarantine = Quarantine(
                self.run_dir, self.order, self.selection.fingerprint, len(self.selection.rows), fraction
            )
        log.info(
            "run=%s step=%d of=%d records=%d global_batch=%d world_size=%d micro_batches=%d zero_stage=%d precision=%s device=%s",
            config.name, self.start, self.last, len(self.selection.rows), self.plan.global_batch, workers.world_size,
            self.plan.micro_batches, config.training.zero_stage, config.training.precision, workers.device,
        )  # fmt: skip

    def steps(self, on_step: Callable[[int], None] | None) -> TrainResult:
        config, workers, done = self.config, self.workers, self.start
        objective = create_objective(config.objective)
        alarm = CollapseAlarm(config.collapse, warmup_steps(config.schedule, self.last))
        clock = StepClock(config.training.global_batch, workers.device)
        with self._stream() as stream, self._trace() as trace:
            for batch in clock.waits_for(self._agreed(stream)):
                inputs, known = step_inputs(
                    batch, self.bank, objective, config, workers.rank, workers.world_size, workers.device
                )
                step = accumulate_gradients(self.engine, inputs, partial(objective.loss, inputs=known), self.plan)
                done, self.loss, self.digest = batch.step + 1, float(step.loss), stream.digest
                alarm.check_loss(done, self.loss, float(step.metrics["effective_negatives"]), self.digest)
                lr = learning_rate(batch.step, self.last, config.optimizer.lr, config.schedule)
                set_learning_rate(self.engine, lr)
                norm = optimizer_step(self.engine)
                alarm.check_gradient(done, norm, self.digest)
                clock.step(batch.wait, batch.slowest)
                values = {name: float(value) for name, value in step.metrics.items()} | {
                    "loss": self.loss,
                    "lr": lr,
                    "grad_norm": norm,
                }
                if done % config.training.log_every == 0 or done == self.last:
                    seconds, shard = clock.slowest
                    log.info(
                        "run=%s step=%d rank=%d slowest_shard=%s read_seconds=%.4f",
                        config.name,
                        done,
                        workers.rank,
                        shard,
                        seconds,
                    )
                    values |= {"effective_rank": effective_rank(step.features["ecg"]), **clock.report()}
                    values |= {
                        "data_slow_reads": float(stream.slow_reads),
                        "data_quarantined": float(self._quarantined()),
                    }
                    if workers.rank == 0:
                        self.reporter.metrics(done, values)
                if trace is not None:
                    trace.write(done, {**values, "digest": self.digest})
                alarm.check_rank(done, values.get("effective_rank"))
                if done % config.training.checkpoint_every == 0:
                    self._save(done)
                if on_step is not None:
                    on_step(done)
            if self.checkpoint != committed_path(self.run_dir, done):
                self._save(done)
        seconds, rate, share = clock.totals()
        assert self.checkpoint is not None
        loss = math.nan if self.loss is None else self.loss
        return TrainResult(
            done,
            self.last,
            loss,
            self.checkpoint,
            self.digest,
            seconds,
            rate,
            share,
            stopped=done < self.last,
            resumed_from=self.start,
        )

    def _write_config(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / "config.resolved.json").write_text(json.dumps(self.config.resolved(), indent=1) + "\n")

    def _stream(self) -> ShardStream:
        data, workers = self.config.data, self.workers
        return ShardStream(
            self.shard_set,
            self.order,
            rank=workers.rank,
            world_size=workers.world_size,
            start=Position(self.start, self.digest),
            stop_step=self.last,
            quarantined=None if self.quarantine is None else self.quarantine.rows,
            read_ahead=ReadAhead(data.threads, data.prefetch, data.slow_read_seconds),
        )

    def _trace(self) -> AbstractContextManager[TraceWriter | None]:
        return TraceWriter(self.run_dir, self.start) if self.workers.rank == 0 else nullcontext()

    def _agreed(self, stream: ShardStream) -> Iterator[Batch]:
        """Batches until a rank is asked to stop; all ranks leave, or fail, before the same step, none waits for one that is gone."""
        batches = iter(stream)
        while True:
            batch, problem = None, None
            try:
                batch = next(batches, None)
            except UserError as error:
                problem = error
            bad = batch is not None and self.quarantine is not None and self.quarantine.touches(batch)
            wish = FAILED if problem else STOP if self.reporter.should_stop() else SUBSTITUTE if bad else GO
            verdict = highest(wish, self.workers.device)
            if verdict == FAILED:
                raise first_error(problem)
            if batch is None:
                return
            if verdict == STOP:
                log.info("run=%s action=stop step=%d", self.config.name, batch.step)
                return
            if verdict == SUBSTITUTE:
                assert self.quarantine is not None
                self.quarantine.settle(stream, batch)
            yield batch

    def _quarantined(self) -> int:
        return 0 if self.quarantine is None else len(self.quarantine.rows)

    def _save(self, step: int) -> None:
        config = json.loads(json.dumps(self.config.resolved()))
        state = resume.TrainerState(
            step, self.digest, config, self.selection.fingerprint, self.workers.world_size, ORDER_VERSION, self.loss
        )
        self.checkpoint = resume.save_checkpoint(
            self.engine, self.run_dir, state, self.workers, keep=self.config.training.keep_checkpoints
        )
        self.reporter.checkpoint(step, self.checkpoint)
