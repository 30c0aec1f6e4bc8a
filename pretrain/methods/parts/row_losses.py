"""Losses per row or per token: each row gives a sum and a count, the global batch gives the mean."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_batch(pairs: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """(sum, count) of this rank's rows, float (b, 2) -> 0-dim: all sums by all counts over the ranks of `group`.

    The gradient reaches the sums and is exact for the rows of this rank. Summed in float64, so that cutting a batch
    another way changes nothing that float32 shows. A batch that counts nothing has loss 0.
    """
    local = pairs.double().sum(dim=0)
    total = local.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total, group=group)
    summed = total[0] + local[0] - local[0].detach()
    # By 1 where nothing counts: its gradient, times a count of 0, stays a number.
    return (summed / torch.where(total[1] > 0, total[1], 1.0)).to(pairs.dtype)


def exact(values: Tensor) -> Tensor:
    """In float32 where they are of less, as in bf16; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
