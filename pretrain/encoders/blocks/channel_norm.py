"""Normalisation between convolutions: only valid samples count, and what is not valid comes out as 0.

Both layers take x (B, C, T) and mask bool (B, 1, T), True = valid, or None when all of it is; same shape and type out.
Zeros behind the last valid sample are what a convolution pads with. So a padded record gives what the cut record gives.
Legend: B records, C channels, T samples, G groups of channels.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32
"""Groups of the Group Normalization paper."""


class MaskedGroupNorm(nn.GroupNorm):
    """Group normalisation (Wu & He 2018) over the valid samples of one record. Records do not see each other."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return super().forward(x)
        parts = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (self.num_groups, -1))  # (B, G, C/G, T)
        valid = mask[:, :, None]
        count = (valid.sum(dim=-1, keepdim=True) * parts.shape[2]).clamp_min(1)
        mean = torch.where(valid, parts, 0.0).sum(dim=(2, 3), keepdim=True) / count
        centred = torch.where(valid, parts - mean, 0.0)
        variance = centred.square().sum(dim=(2, 3), keepdim=True) / count
        scaled = (centred * (variance + self.eps).rsqrt()).flatten(1, 2)
        return torch.where(mask, scaled * self.weight[:, None] + self.bias[:, None], 0.0).to(x.dtype)


class MicroBatchNorm(nn.Module):
    """The published BatchNorm (Ioffe & Szegedy 2015), named after what sees each other: the records of a micro-batch.

    In training the statistics are those of one micro-batch on one rank. So the result depends on `training.micro_batch`
    and on the world size, and a run continued at another of either is another run. In evaluation the running statistics
    stand in, and nothing is shared between records.

    The running statistics move once per optimizer step, in `after_update`: to the mean over all forward passes of the
    step that had a graph, on all ranks, weighted by their samples. Gradient caching encodes every micro-batch a first
    time without a graph; that pass is not counted.
    """

    running_mean: Tensor
    running_variance: Tensor
    seen: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_variance", torch.ones(channels))
        # Of this step, on this rank: samples x mean, samples x variance, samples. Zero between steps: not checkpointed.
        self.register_buffer("seen", torch.zeros(2 * channels + 1), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if not self.training:
            scaled = F.batch_norm(
                x, self.running_mean, self.running_variance, self.weight, self.bias, training=False, eps=self.eps
            )
            return scaled if mask is None else torch.where(mask, scaled, 0.0)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        valid = torch.ones_like(x[:, :1], dtype=torch.bool) if mask is None else mask
        count = valid.sum().clamp_min(1).to(exact.dtype)
        mean = torch.where(valid, exact, 0.0).sum(dim=(0, 2), keepdim=True) / count
        centred = torch.where(valid, exact - mean, 0.0)
        variance = centred.square().sum(dim=(0, 2), keepdim=True) / count
        if torch.is_grad_enabled():
            self._remember(mean.detach().flatten(), variance.detach().flatten(), count)
        scaled = centred * (variance + self.eps).rsqrt() * self.weight[:, None] + self.bias[:, None]
        return torch.where(valid, scaled, 0.0).to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        unbiased = variance * (count / (count - 1).clamp_min(1))
        self.seen += torch.cat([mean * count, unbiased * count, count[None]])

    @torch.no_grad()
    def after_update(self) -> None:
        """Move the running statistics by this step, equally on every rank: once per optimizer step, a collective."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self.seen)
        samples = self.seen[-1]
        share = self.momentum * (samples > 0).to(samples.dtype)
        of_step = self.seen[:-1] / samples.clamp_min(1)
        for running, found in zip(
            (self.running_mean, self.running_variance), of_step.split(self.channels), strict=True
        ):
            running.lerp_(found, share)
        self.seen.zero_()


def channel_norm(name: str, channels: int) -> MaskedGroupNorm | MicroBatchNorm:
    """The layer that `encoder.norm` asks for.

    group        up to 32 groups of two channels or more: a channel normalised by itself forgets its size.
    layer        one group of all channels.
    micro-batch  the published BatchNorm.
    """
    if name == "micro-batch":
        return MicroBatchNorm(channels)
    return MaskedGroupNorm({"group": max(math.gcd(channels, 2 * GROUPS) // 2, 1), "layer": 1}[name], channels)
