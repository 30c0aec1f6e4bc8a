"""The training loop: shards in, checkpoints and a loss trace out.

One loop for every method, ZeRO stage, precision and world size.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import write_json
from cardialign.data_shards.order.contract import Order
from cardialign.data_shards.order.global_order import ORDER_VERSION
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.selection import Selection
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.batch import Batch
from cardialign.data_shards.stream.stream import EMPTY_DIGEST, Position, ReadAhead, ShardStream
from cardialign.data_shards.text.bank import TextBank
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.methods.base import Method, Tensors, create_method, method_class, watched
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import CONFIG, INITIALISED, MEMORY
from cardialign.pretrain.run.layout import write_error
from cardialign.pretrain.run.moves import moved
from cardialign.pretrain.run.observer import Observer
from cardialign.pretrain.run.trace import TraceWriter
from cardialign.pretrain.training.alarms import CollapseAlarm, effective_rank
from cardialign.pretrain.training.batch import step_inputs
from cardialign.pretrain.training.checkpoints.background import Checkpoints
from cardialign.pretrain.training.checkpoints.files import committed_path
from cardialign.pretrain.training.checkpoints.judge import Facts, Resume
from cardialign.pretrain.training.checkpoints.load import find_resume_point, load_checkpoint, seed_random
from cardialign.pretrain.training.checkpoints.state import TrainerState
from cardialign.pretrain.training.checkpoints.survivors.neighbours import Neighbours
from cardialign.pretrain.training.collectives import first_error, highest, on_rank_zero
from cardialign.pretrain.training.data import open_bank, open_data, total_steps
from cardialign.pretrain.training.engine import (
    Workers,
    make_engine,
    part_weights,
    plan_batches,
    set_learning_rate,
    start_workers,
)
from cardialign.pretrain.training.gradient_cache import accumulate_gradients
from cardialign.pretrain.training.initialise import initialise, open_start, require_start
from cardialign.pretrain.training.numbers.bad_steps import BadSteps, share_of
from cardialign.pretrain.training.numbers.non_finite import Inspection
from cardialign.pretrain.training.peak_memory import PeakMemory
from cardialign.pretrain.training.quarantine import Quarantine
from cardialign.pretrain.training.schedule import as_planned, idle_parts, learning_rate, warmup_steps
from cardialign.pretrain.training.step_clock import StepClock

log = logging.getLogger(__name__)

GO, SUBSTITUTE, STOP, FAILED = range(4)
"""What a rank asks for before a step; the highest of all ranks is what all do."""


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    `seconds` and `records_per_second` cover this start only, checkpoints included; `data_wait_share` is the share of
    that time in which the step waited for data. `stopped`: asked to stop before the last step, and can be continued
    from `checkpoint`.
    """

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
    observer: Observer,
    *,
    bank: TextBank | None = None,
    on_step: Callable[[int], None] | None = None,
    resume: Resume = "same",
    inspect: int | None = None,
) -> TrainResult:
    """Train to the last step, from the newest verified checkpoint in `run_dir` or from the start; called on every rank.

    bank     text bank when the caller has one open; otherwise the shard set's bank for `config.text` is opened, unless
             the method reads no reports.
    on_step  called on every rank after each finished step (1-based).
    resume   what becomes of a run that is there: "same", it goes on as planned; "extend", it goes on to the number of
             steps of `config` (`training.schedule`); "start-over", it is moved to `earlier/N`.
    inspect  a step (1-based) that is written down as bad ones are, with the first module whose output is not finite.
    Raises UserError (CollapseError, CheckpointError, DataError): the last committed checkpoint stays in `run_dir`. A
    start that is refused has changed nothing.
    """
    workers = start_workers()
    run_dir = Path(run_dir)
    shard_set, selection, order = open_data(config)
    if bank is None and method_class(config).reports:
        bank = open_bank(config)
    run = _Run(config, run_dir, observer, workers, shard_set, selection, order, bank, resume, Inspection(inspect))
    run.set_up()
    return run.steps(on_step)


@dataclass
class _Run:
    """The parts of one run; `set_up` brings them to the step where it continues, `steps` trains."""

    config: RunConfig
    run_dir: Path
    observer: Observer
    workers: Workers
    shard_set: ShardSet | JoinedSets
    selection: Selection
    order: Order
    bank: TextBank | None
    resume: Resume = "same"
    inspection: Inspection = field(default_factory=Inspection)
    start: int = 0
    digest: str = EMPTY_DIGEST
    loss: float | None = None
    checkpoint: Path | None = None
    engine: Any = None
    quarantine: Quarantine | None = None
    trace: TraceWriter | None = None

    def set_up(self) -> None:
        config, workers = self.config, self.workers
        moved()  # the shards are open
        self.schedule = as_planned(total_steps(config, len(self.selection.rows)))
        self.plan = plan_batches(config.training.global_batch, workers.world_size, config.training.micro_batch)
        torch.manual_seed(config.seed)
        method = create_method(config, self.shard_set.spec)
        facts = Facts(self.selection.fingerprint, len(self.selection.rows), bank_digest=self._bank_digest)
        point = find_resume_point(self.run_dir, config, facts, workers, self.resume)
        moved()  # what is there is verified
        if point is None:
            require_start(config)
        on_rank_zero(partial(self._write, CONFIG, config.resolved()))  # only now: it may go on here
        if point is None and config.init_from is not None:
            start = initialise(method, config, open_start(Path(config.init_from).expanduser()))
            on_rank_zero(partial(self._write, INITIALISED, asdict(start)))
        parts = tuple(method.learning_rates(0))
        universal = point is not None and point.universal
        self.engine = make_engine(config, method, self.plan, workers.device, universal=universal, parts=parts)
        moved()
        self.memory = PeakMemory(self.engine, workers.device)
        self.engine.train()
        seed_random(config.seed, workers.rank, 0)
        if point is not None:
            load_checkpoint(self.engine, point, workers)
            state = point.state
            self.start, self.digest, self.loss, self.checkpoint = state.step, state.digest, state.loss, point.path
            self.schedule = point.plan
        moved()  # the weights are there
        on_rank_zero(self._open_trace)
        self.bad = BadSteps(self.run_dir, config.training, workers, self.start)
        self.told = -1 if self.checkpoint is None else self.start
        self.checkpoints = Checkpoints(self.engine, self.run_dir, workers, config.training, self.told)
        self.neighbours = Neighbours(self.engine, self.run_dir, workers, config.training)
        fraction = config.data.max_bad_fraction
        if fraction > 0:
            self.quarantine = Quarantine(
                self.run_dir, self.order, self.selection.fingerprint, len(self.selection.rows), fraction, self.shard_set
            )
        for idle in idle_parts(method.learning_rates, self.last):
            log.warning(
                "run=%s steps=%d part=%s remark=it learns in none of these steps, its learning rate is 0 in all",
                config.name, self.last, idle,
            )  # fmt: skip
        log.info(
            "run=%s step=%d of=%d records=%d global_batch=%d world_size=%d "
            "micro_batches=%d zero_stage=%d precision=%s device=%s",
            config.name, self.start, self.last, len(self.selection.rows), self.plan.global_batch, workers.world_size,
            self.plan.micro_batches, config.training.zero_stage, config.training.precision, workers.device,
        )  # fmt: skip

    def steps(self, on_step: Callable[[int], None] | None) -> TrainResult:
        config, done = self.config, self.start
        alarm = CollapseAlarm(config.collapse, warmup_steps(config.schedule, self.schedule[0][1]))
        clock = StepClock(config.training.global_batch, self.workers)
        self.memory.begin()
        with self._stream() as stream, self.trace or nullcontext(), clock, self.checkpoints, self.neighbours:
            for batch in clock.waits_for(self._agreed(stream, clock)):
                done, self.digest = batch.step + 1, stream.digest
                with watched(config, f"step {done}"):
                    features, values = self._step(batch, alarm)
                clock.step(batch)
                if done % config.training.log_every == 0 or done == self.last:
                    values |= self._observed(done, features, clock, stream)
                if self.trace is not None:
                    self.trace.write(done, {**values, "digest": self.digest})
                alarm.check_rank(done, values.get("effective_rank"))
                if self.neighbours.due(done):
                    with clock.checkpointing():
                        self.neighbours.take(self._state(done), None if self.trace is None else self.trace.flush())
                if done % config.training.checkpoint_every == 0:
                    self._save(done, clock)
                clock.tell(self.run_dir, done, self.last)
                if on_step is not None:
                    on_step(done)
            if self.checkpoints.saved != done:
                self._save(done, clock)
            with clock.checkpointing(goes_on=True):
                self.checkpoints.finish()
                self._settled(clock)
            clock.tell(self.run_dir, done, self.last, now=True)
        held = self.memory.of_all_ranks(done, self.last)
        if held is not None:
            on_rank_zero(partial(self._write, MEMORY, held))
        seconds, rate, share = clock.totals()
        assert self.checkpoint is not None
        return TrainResult(
            steps=done,
            total_steps=self.last,
            final_loss=math.nan if self.loss is None else self.loss,
            checkpoint=self.checkpoint,
            digest=self.digest,
            seconds=seconds,
            records_per_second=rate,
            data_wait_share=share,
            stopped=done < self.last,
            resumed_from=self.start,
        )

    def _step(self, batch: Batch, alarm: CollapseAlarm) -> tuple[Tensors, dict[str, float]]:
        """One optimizer step: the features of this rank's rows, and the figures of the step."""
        config, method, step = self.config, self.method, batch.step
        inputs = step_inputs(batch, self.shard_set, self.bank, method, config, self.workers)
        loss = partial(method.loss, inputs=inputs, group=None)
        self.bad.begin(self.engine)
        with self.inspection.of(step + 1, method, inputs) as first:
            value, features = accumulate_gradients(self.engine, inputs, loss, self.plan, method.counts(inputs))
        seen = float(value.loss)
        finite = self.bad.finite_everywhere(seen)
        if finite:
            self.loss = seen
            alarm.check_loss(step + 1, seen, value.chance)
        lr = learning_rate(step, self.schedule, config.optimizer.lr, config.schedule)
        set_learning_rate(self.engine, lr, method.learning_rates(step))
        norm, kind = self.bad.update(self.engine, finite)
        if kind is not None or first is not None:
            told = {"digest": self.digest, "loss": seen, "gradient_norm": norm, "first": first and first.found}
            self.bad.settle(kind, told, share_of(self.workers.rank, batch, self.shard_set, features, seen), step + 1)
        if kind is None:
            method.after_update(step, partial(part_weights, self.engine))
        figures = {name: float(figure) for name, figure in value.metrics.items()} | {"loss": seen, "lr": lr}
        figures |= {"grad_norm": norm} | ({} if kind is None else {"skipped": 1.0})
        whole = {name: figure for name, figure in figures.items() if math.isfinite(figure)}
        return features if kind is None else {}, whole

    def _observed(self, done: int, features: Tensors, clock: StepClock, stream: ShardStream) -> dict[str, float]:
        """What is looked at every few steps only.

        Where the time went, the rank of the embeddings, trouble with the data.
        """
        seconds, shard = clock.slowest
        log.info(
            "run=%s step=%d rank=%d slowest_shard=%s read_seconds=%.4f",
            self.config.name, done, self.workers.rank, shard, seconds,
        )  # fmt: skip
        rank = {"effective_rank": effective_rank(features["ecg"])} if "ecg" in features else {}
        quarantined = 0 if self.quarantine is None else len(self.quarantine.rows)
        data = {"data_slow_reads": float(stream.slow_reads), "data_quarantined": float(quarantined)}
        return {**rank, **clock.report(), **data}

    @property
    def method(self) -> Method:
        found: Method = self.engine.module
        return found

    @property
    def _bank_digest(self) -> str | None:
        return None if self.bank is None else self.bank.digest

    @property
    def last(self) -> int:
        return self.schedule[-1][1]

    def _write(self, name: str, values: dict[str, Any]) -> None:
        fence.check(self.run_dir)
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            write_json(self.run_dir / name, values, indent=1)
        except OSError as error:
            raise write_error(self.run_dir, error) from None

    def _open_trace(self) -> None:
        try:
            self.trace = TraceWriter(self.run_dir, self.start)
            if self.start < self.last:  # of an earlier start, maybe on other ranks; a run that is done keeps its own
                (self.run_dir / MEMORY).unlink(missing_ok=True)
        except OSError as error:
            raise write_error(self.run_dir, error) from None

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

    def _agreed(self, stream: ShardStream, clock: StepClock) -> Iterator[Batch]:
        """Batches until a rank is asked to stop.

        All ranks leave, or fail, before the same step; none waits for one that is gone. Here they hear of a checkpoint
        that was committed behind the steps, or could not be written.
        """
        batches = iter(stream)
        while True:
            batch, problem = None, None
            moved()
            try:
                if self.workers.rank == 0:
                    fence.check(self.run_dir)
                batch = next(batches, None)
            except UserError as error:
                problem = error
            problem = problem or self.checkpoints.problem()
            bad = batch is not None and self.quarantine is not None and self.quarantine.touches(batch)
            wish = FAILED if problem else STOP if self.observer.should_stop() else SUBSTITUTE if bad else GO
            verdict, committed = highest((wish, self.checkpoints.committed), self.workers.device)
            if verdict == FAILED:
                raise first_error(problem)
            if committed > self.told:
                with clock.checkpointing(goes_on=True):
                    self.checkpoints.settle(committed)
                    self._settled(clock)
            if batch is None:
                return
            if verdict == STOP:
                log.info("run=%s action=stop step=%d", self.config.name, batch.step)
                return
            if verdict == SUBSTITUTE:
                assert self.quarantine is not None
                self.quarantine.settle(stream, batch)
            yield batch

    def _state(self, step: int) -> TrainerState:
        config = json.loads(json.dumps(self.config.resolved()))
        return TrainerState(
            step, self.digest, config, self.selection.fingerprint, self.workers.world_size, ORDER_VERSION, self.loss,
            spec=self.shard_set.spec, shards_fingerprint=self.shard_set.fingerprint,
            bank_digest=self._bank_digest,
            plan=self.schedule if len(self.schedule) > 1 else None,
        )  # fmt: skip

    def _save(self, step: int, clock: StepClock) -> None:
        self.memory.look(self.checkpoints.host_bytes + self.neighbours.host_bytes)
        state = self._state(step)
        with clock.checkpointing():
            self.checkpoints.finish()  # the one before
            self._settled(clock)
            self.checkpoints.save(state, None if self.trace is None else self.trace.flush())
            self._settled(clock)
        self.memory.begin()

    def _settled(self, clock: StepClock) -> None:
        """All ranks know of the newest checkpoint that was committed; each is told once."""
        step = self.checkpoints.settled
        if step > self.told:
            self.told, self.checkpoint = step, committed_path(self.run_dir, step)
            clock.commit = self.checkpoints.commit_seconds
            self.observer.checkpoint(step, self.checkpoint)
