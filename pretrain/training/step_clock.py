"""Where the time of the steps went: on this rank, and as its note tells the others."""

from __future__ import annotations

import contextlib
import heapq
import platform
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.figures import RENEWED_SECONDS, RankFigures, write_figures
from cardialign.pretrain.training.engine import Workers
from cardialign.pretrain.training.exchange import ExchangeClock, Waited

KINDS = ("read", "decode", "queue")
TOTALS = ("steps", "seconds", "data", "read", "decode", "exchange", "own", "checkpoint")
WINDOW = 128
"""Steps that figures of a rank speak of."""
SHARDS = 4
"""Shards of each step that are kept, those that took longest."""


def _zeros() -> dict[str, float]:
    return dict.fromkeys(KINDS, 0.0)


@dataclass
class _Step:
    """One step on this rank, from the wish for its batch to the wish for the next."""

    began: float
    ended: float = 0.0
    gap: tuple[Any, Any] | None = None
    wait: dict[str, float] = field(default_factory=_zeros)
    shards: dict[str, tuple[float, int]] = field(default_factory=dict)
    agree: Waited = field(default_factory=Waited)
    exchange: Waited = field(default_factory=Waited)
    checkpoint: float = 0.0

    @property
    def passed(self) -> bool:
        return self.agree.passed and self.exchange.passed


@dataclass(frozen=True)
class _Times:
    """The same as seconds; `seconds` has no pause for a checkpoint in it."""

    seconds: float
    data: float
    agree: float
    exchange: float
    own: float
    checkpoint: float
    read: float
    decode: float
    reads: int
    shards: tuple[tuple[str, tuple[float, int]], ...]


@dataclass
class StepClock:
    """Steps and data wait since the last report and since the start. queue = seconds in which the step waited for its
    batch; read and decode = seconds spent by the background threads, which cost nothing while they stay hidden behind
    the step.

    On CUDA the device has a figure of its own, `data_device_wait_seconds`: between the last kernel of one step and the
    arrival of the next batch, by device events. The host's wait overstates it whenever kernels are still queued while
    the host waits. Nothing here waits for the device: events are read once the next step's exchange has passed.

    The clock is a context: while it is open it also knows the time in collectives (`ExchangeClock`).
    """

    global_batch: int
    workers: Workers
    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    waits: dict[str, float] = field(default_factory=_zeros)
    slowest: tuple[float, str] = (0.0, "")
    total_steps: int = 0
    total_queue: float = 0.0

    def __post_init__(self) -> None:
        self.since = self.paused_at = self.started
        self.exchange = ExchangeClock(self.workers.device)
        self.pause = self.pause_interval = self.commit = 0.0
        self.spent = dict.fromkeys(TOTALS, 0.0)
        self._events: list[tuple[Any, Any]] = []
        self._step: _Step | None = None
        self._closed: deque[_Step] = deque()
        self._window: deque[_Times] = deque(maxlen=WINDOW)
        self._written = float("-inf")

    def __enter__(self) -> StepClock:
        self.exchange.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.exchange.__exit__(*error)

    def waits_for(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass the batches on; on CUDA, mark on the device's stream where each wait for one begins and ends."""
        iterator = iter(batches)
        while True:
            self._close_step()
            step = self._step = _Step(time.perf_counter())
            begins = self.exchange.mark() if self.exchange.cuda else None
            try:
                batch = next(iterator)
            except StopIteration:
                self._step = None
                return
            step.wait, step.shards, step.agree = batch.wait, batch.shards, self.exchange.take()
            if begins is not None:
                step.gap = (begins, self.exchange.mark())
                self._events.append(step.gap)
            yield batch

    def step(self, batch: Batch) -> None:
        """Count a step, its waits by kind, and its slowest read (seconds, shard)."""
        self.steps += 1
        self.total_steps += 1
        self.total_queue += batch.wait["queue"]
        self.slowest = max(self.slowest, batch.slowest)
        for kind in KINDS:
            self.waits[kind] += batch.wait[kind]

    @contextlib.contextmanager
    def checkpointing(self, *, goes_on: bool = False) -> Iterator[None]:
        """In here the run pauses for a checkpoint. goes_on: for the same as the pause before, as to hear of its commit.

        What is written behind the steps is no pause: `commit` is the time until it was committed.
        """
        began = time.perf_counter()
        if self._step is not None:
            self._step.exchange.add(self.exchange.take())
        yield
        ended = time.perf_counter()
        self.exchange.take()
        more, interval = ended - began, ended - self.paused_at
        self.pause, self.paused_at = more + self.pause * goes_on, ended
        self.pause_interval = interval + self.pause_interval * goes_on
        if self._step is not None:
            self._step.checkpoint += more
        else:
            self.spent["checkpoint"] += more

    def report(self) -> dict[str, float]:
        """Figures since the last report; those of steps (p50, p99, share of time in collectives) of the last 128."""
        now = time.perf_counter()
        seconds = max(now - self.since, 1e-9)
        figures = {
            "records_per_second": self.steps * self.global_batch / seconds,
            "data_wait_share": self.waits["queue"] / seconds,
        }
        figures |= {f"data_{kind}_seconds": value for kind, value in self.waits.items()}
        figures["data_slowest_read_seconds"] = self.slowest[0]
        if self._events:
            self._events[-1][1].synchronize()
            figures["data_device_wait_seconds"] = (
                sum(begins.elapsed_time(ends) for begins, ends in self._events) / 1000.0
            )
            self._events.clear()
        if self._window:
            total = sum(step.seconds for step in self._window)
            waited = sum(step.agree + step.exchange for step in self._window)
            figures["step_seconds_p50"], figures["step_seconds_p99"] = self._percentiles()
            figures["exchange_share"] = waited / max(total, 1e-9)
        if self.pause:
            figures["checkpoint_pause_seconds"] = self.pause
        if self.commit:
            figures["checkpoint_commit_seconds"] = self.commit
        self.since, self.steps, self.waits, self.slowest = now, 0, _zeros(), (0.0, "")
        return figures

    def tell(self, run_dir: Path, step: int, steps: int, *, now: bool = False) -> None:
        """Renew this rank's note in the run directory, when it is time or `now`. Costs one small file."""
        clock = time.monotonic()
        if self._window and (now or clock - self._written >= RENEWED_SECONDS):
            self._written = clock
            write_figures(run_dir, self._figures(run_dir, step, steps))

    def totals(self) -> tuple[float, float, float]:
        """(seconds, records per second, data wait share) of all steps."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return seconds, self.total_steps * self.global_batch / seconds, self.total_queue / seconds

    def _close_step(self) -> None:
        """The step that has just ended counts as soon as the device has passed it."""
        step, self._step = self._step, None
        if step is not None:
            step.ended = time.perf_counter()
            step.exchange.add(self.exchange.take())
            self._closed.append(step)
        else:
            self.exchange.take()
        while self._closed and self._closed[0].passed:
            times = _times(self._closed.popleft())
            self._count(times)
            if self.spent["steps"] > 1:  # the first builds what all others find
                self._window.append(times)

    def _count(self, times: _Times) -> None:
        totals = self.spent
        totals["steps"] += 1
        totals["seconds"] += times.seconds + times.checkpoint
        totals["exchange"] += times.agree + times.exchange
        for name in ("data", "read", "decode", "own", "checkpoint"):
            totals[name] += getattr(times, name)

    def _percentiles(self) -> tuple[float, float]:
        ordered = sorted(step.seconds for step in self._window)
        return tuple(ordered[round(share * (len(ordered) - 1))] for share in (0.5, 0.99))  # type: ignore[return-value]

    def _figures(self, run_dir: Path, step: int, steps: int) -> RankFigures:
        sums = {
            name: sum(getattr(times, name) for times in self._window)
            for name in ("data", "agree", "exchange", "own", "read", "decode", "reads")
        }
        shards: dict[str, tuple[float, int]] = {}
        for times in self._window:
            for name, (seconds, reads) in times.shards:
                before = shards.get(name, (0.0, 0))
                shards[name] = (before[0] + seconds, before[1] + reads)
        slowest = max(shards, key=lambda name: shards[name][0], default="")
        p50, p99 = self._percentiles()
        device, mark = self.workers.device, fence.held(run_dir)
        return RankFigures(
            rank=self.workers.rank, world_size=self.workers.world_size, host=platform.node(),
            group="" if mark is None else mark.label, time=time.time(), step=step, steps=steps,
            global_batch=self.global_batch,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            window_steps=len(self._window), window_seconds=sum(times.seconds for times in self._window),
            **sums, p50=p50, p99=p99,
            shard=slowest, shard_seconds=shards.get(slowest, (0.0, 0))[0], shard_reads=shards.get(slowest, (0.0, 0))[1],
            pause=self.pause, pause_interval=self.pause_interval, commit=self.commit, totals=dict(self.spent),
        )  # fmt: skip


def _times(step: _Step) -> _Times:
    agree, exchange = step.agree.seconds, step.exchange.seconds
    data = step.wait["queue"]
    if step.gap is not None:  # kernels may still have been at work while the host waited
        data = min(data, max(0.0, step.gap[0].elapsed_time(step.gap[1]) / 1000.0 - agree))
    seconds = step.ended - step.began - step.checkpoint
    own = max(0.0, seconds - data - agree - exchange)
    reads = sum(count for _, count in step.shards.values())
    slowest = tuple(heapq.nlargest(SHARDS, step.shards.items(), key=lambda item: item[1][0]))
    return _Times(
        seconds, data, agree, exchange, own, step.checkpoint, step.wait["read"], step.wait["decode"], reads, slowest
    )
