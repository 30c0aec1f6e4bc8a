"""Rows of all ranks on every rank, for losses that are not among the kernels."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """All rows forward; backward, what every rank found for a row is summed and given to its owner."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        summed = gradient.contiguous()
        dist.all_reduce(summed, group=ctx.group)
        start = sum(ctx.sizes[: dist.get_rank(ctx.group)])
        return summed[start : start + ctx.sizes[dist.get_rank(ctx.group)]], None, None


def gathered(rows: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, int]:
    """Rows (b, ...) of this rank -> those of all ranks in their order, (B, ...), and where this rank's begin.

    b may differ between ranks. The gradient of what every rank computes with them is summed, so that d(global loss) is
    whole at their owner. A collective, forward and, where gradients are asked for, backward.
    """
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return rows, 0
    own = torch.tensor([len(rows)], device=rows.device)
    found = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, own, group=group)
    sizes = [int(size) for size in found]
    return _Gather.apply(rows, sizes, group), sum(sizes[: dist.get_rank(group)])


def total(value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum over the ranks, without a gradient."""
    summed = value.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(summed, group=group)
    return summed


def summed(value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum over the ranks, whose gradient reaches this rank's summand. A collective, forward alone.

    The gradient is exact where every rank computes one and the same loss from sums alone, and each summand is of that
    rank's rows: not of a mean that was summed before.
    """
    return value + (total(value, group) - value.detach())
