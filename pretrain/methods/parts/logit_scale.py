"""A learnable temperature that stays inside its bounds and never gets stuck there."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class _ClampInward(torch.autograd.Function):
    """Clamp whose gradient still passes at a bound when a descent step would lead back inside.

    A plain clamp would freeze there for ever.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.bounds = (low, high)
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (value,) = ctx.saved_tensors
        low, high = ctx.bounds
        outward = ((value >= high) & (gradient < 0)) | ((value <= low) & (gradient > 0))
        return torch.where(outward, torch.zeros_like(gradient), gradient), None, None


class LogitScale(nn.Module):
    """log(1/temperature), learnable, clamped to the temperature bounds of the recipe.

    Shape (1,): DeepSpeed refuses 0-dimensional parameters.
    """

    def __init__(self, temperature: float, low: float, high: float, learn: bool) -> None:
        super().__init__()
        self.bounds = (math.log(1.0 / high), math.log(1.0 / low))
        self.log_scale = nn.Parameter(torch.tensor([math.log(1.0 / temperature)]), requires_grad=learn)

    def forward(self) -> Tensor:
        return _ClampInward.apply(self.log_scale.float(), *self.bounds)
