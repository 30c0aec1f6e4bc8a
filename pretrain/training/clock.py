"""Where the time of the steps went."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

KINDS = ("read", "decode", "queue")


def _zeros() -> dict[str, float]:
    return dict.fromkeys(KINDS, 0.0)


@dataclass
class StepClock:
    """Steps and data wait since the last report and since the start. queue = seconds in which the step waited for its batch;
    read and decode = seconds spent by the background threads, which cost nothing while they stay hidden behind the step."""

    global_batch: int
    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    waits: dict[str, float] = field(default_factory=_zeros)
    total_steps: int = 0
    total_queue: float = 0.0

    def __post_init__(self) -> None:
        self.since = self.started

    def step(self, wait: Mapping[str, float]) -> None:
        self.steps += 1
        self.total_steps += 1
        self.total_queue += wait["queue"]
        for kind in KINDS:
            self.waits[kind] += wait[kind]

    def report(self) -> dict[str, float]:
        """Figures since the last report."""
        now = time.perf_counter()
        seconds = max(now - self.since, 1e-9)
        figures = {"records_per_second": self.steps * self.global_batch / seconds, "data_wait_share": self.waits["queue"] / seconds}
        figures |= {f"data_{kind}_seconds": value for kind, value in self.waits.items()}
        self.since, self.steps, self.waits = now, 0, _zeros()
        return figures

    def totals(self) -> tuple[float, float, float]:
        """(seconds, records per second, data wait share) of all steps."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return seconds, self.total_steps * self.global_batch / seconds, self.total_queue / seconds
