"""Where the time of the steps went."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

KINDS = ("read", "decode", "queue")
CPU = torch.device("cpu")
T = TypeVar("T")


def _zeros() -> dict[str, float]:
    return dict.fromkeys(KINDS, 0.0)


@dataclass
class StepClock:
    """Steps and data wait since the last report and since the start. queue = seconds in which the step waited for its
    batch; read and decode = seconds spent by the background threads, which cost nothing while they stay hidden behind
    the step.

    On CUDA the device has a figure of its own, `data_device_wait_seconds`: between the last kernel of one step and the
    arrival of the next batch, by device events. The host's wait overstates it whenever kernels are still queued while
    the host waits.
    """

    global_batch: int
    device: torch.device = CPU
    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    waits: dict[str, float] = field(default_factory=_zeros)
    slowest: tuple[float, str] = (0.0, "")
    total_steps: int = 0
    total_queue: float = 0.0

    def __post_init__(self) -> None:
        self.since = self.started
        self._events: list[tuple[Any, Any]] = []

    def waits_for(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass the batches on; on CUDA, mark on the device's stream where each wait for one begins and ends."""
        on_device = self.device.type == "cuda" and torch.cuda.is_available()
        iterator = iter(batches)
        while True:
            begins = self._mark() if on_device else None
            try:
                batch = next(iterator)
            except StopIteration:
                return
            if on_device:
                self._events.append((begins, self._mark()))
            yield batch

    def step(self, wait: Mapping[str, float], slowest: tuple[float, str] = (0.0, "")) -> None:
        """Count a step, its waits by kind, and its slowest read (seconds, shard)."""
        self.steps += 1
        self.total_steps += 1
        self.total_queue += wait["queue"]
        self.slowest = max(self.slowest, slowest)
        for kind in KINDS:
            self.waits[kind] += wait[kind]

    def report(self) -> dict[str, float]:
        """Figures since the last report."""
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
        self.since, self.steps, self.waits, self.slowest = now, 0, _zeros(), (0.0, "")
        return figures

    def totals(self) -> tuple[float, float, float]:
        """(seconds, records per second, data wait share) of all steps."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return seconds, self.total_steps * self.global_batch / seconds, self.total_queue / seconds

    def _mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
