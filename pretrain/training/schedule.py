"""Learning rate as a pure function of the step: linear warm-up, then cosine or constant.

A run may be continued for another number of steps (`extend`). Its plan then has a second stretch, and what follows is:
- steps that are done keep the rate that they had;
- a warm-up that is not over goes on as it was, to the same peak at the same step;
- after it, constant stays at the peak; cosine falls from the rate of the last step that is done (from the peak, where
  the warm-up was not over) to `peak * min_lr_ratio` at the new last step. It never rises, and there is no new warm-up.
A finished cosine run that is extended therefore goes on at its lowest rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from cardialign.pretrain.config import ScheduleConfig

Plan = tuple[tuple[int, int], ...]
"""(first step, total steps of the run as planned from there on), in order; the first begins at step 0."""

ENDING = 16
"""Steps at the end of a run, among which every part that takes turns has its own."""


def as_planned(total_steps: int) -> Plan:
    """The plan of a run whose duration was never changed."""
    return ((0, total_steps),)


def idle_parts(rates: Callable[[int], Mapping[str, float]], total_steps: int) -> list[str]:
    """The parts of a method (`Method.learning_rates`) that begin to learn behind the last step of the run."""
    ending = [rates(step) for step in range(max(0, total_steps - ENDING), total_steps)]
    return [part.rstrip("._") for part in rates(0) if not any(each[part] for each in ending)]


def warmup_steps(config: ScheduleConfig, total_steps: int) -> int:
    """Steps of the linear ramp: `warmup_steps` when set, else `warmup_fraction` of the run;
    at least one unless switched off with 0.
    """
    if config.warmup_steps is not None:
        return min(config.warmup_steps, total_steps)
    return min(total_steps, math.ceil(config.warmup_fraction * total_steps))


def learning_rate(step: int, plan: Sequence[tuple[int, int]], peak: float, config: ScheduleConfig) -> float:
    """Learning rate of optimizer step `step` (0-based) of a run with this plan.

    The ramp ends at `peak` on its last step and never starts at 0, so that no step is wasted; the cosine ends at
    `peak * min_lr_ratio`.
    """
    ramp = warmup_steps(config, plan[0][1])
    if step < ramp:
        return peak * (step + 1) / ramp
    if config.name == "constant":
        return peak
    number = max(index for index, (first, _) in enumerate(plan) if first <= step)
    first, total = plan[number]
    begin = max(first, ramp)
    height = peak if begin == ramp else learning_rate(begin - 1, plan[:number], peak, config)
    progress = min(1.0, (step - begin + 1) / max(1, total - begin))
    floor = peak * config.min_lr_ratio
    return floor + (height - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
