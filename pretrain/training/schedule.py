"""Learning rate as a pure function of the step: linear warm-up, then cosine or constant."""

from __future__ import annotations

import math

from cardialign.pretrain.config import ScheduleConfig


def warmup_steps(config: ScheduleConfig, total_steps: int) -> int:
    """Steps of the linear ramp: `warmup_steps` when set, else `warmup_fraction` of the run;
    at least one unless switched off with 0.
    """
    if config.warmup_steps is not None:
        return min(config.warmup_steps, total_steps)
    return min(total_steps, math.ceil(config.warmup_fraction * total_steps))


def learning_rate(step: int, total_steps: int, peak: float, config: ScheduleConfig) -> float:
    """Learning rate of optimizer step `step` (0-based) of `total_steps`.

    The ramp ends at `peak` on its last step and never starts at 0, so that no step is wasted; the cosine ends at
    `peak * min_lr_ratio`.
    """
    ramp = warmup_steps(config, total_steps)
    if step < ramp:
        return peak * (step + 1) / ramp
    if config.name == "constant":
        return peak
    progress = min(1.0, (step - ramp + 1) / max(1, total_steps - ramp))
    floor = peak * config.min_lr_ratio
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
