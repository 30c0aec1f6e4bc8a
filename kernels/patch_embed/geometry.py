"""The geometry of the patch embedding: parameters of a scale, and how many tokens it makes, when, and of what.

Shapes: B batch, L leads, T samples, G lead groups, L_g leads of a group, K kernel samples, D width,
N = floor((T - K) / stride) + 1 tokens of a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LAYER_NORM_EPS = 1e-5


@dataclass
class PatchScaleParams:
    """Parameters of one scale: kernel and stride in samples, and learned tensors.

    weights: one (D, L_g, K) per group. bias, ln_weight, ln_bias: (G, D).
    missing: (L, D), the embedding of each missing lead.
    """

    kernel: int
    stride: int
    weights: Sequence[Tensor]
    bias: Tensor
    ln_weight: Tensor
    ln_bias: Tensor
    missing: Tensor


def token_count(samples: int, kernel: int, stride: int) -> int:
    """Tokens of a signal of `samples` samples. Raises ValueError when the signal is shorter than the kernel."""
    if kernel < 1 or stride < 1:
        raise ValueError(
            f"kernel {kernel} and stride {stride} must be at least one sample; "
            "choose longer patches or a higher sampling rate"
        )
    if samples < kernel:
        raise ValueError(
            f"the signal has {samples} samples, the patch kernel {kernel}; "
            f"choose a kernel of at most {samples} samples or longer signals"
        )
    return (samples - kernel) // stride + 1


def token_seconds(
    count: int, kernel: int, stride: int, sampling_rate: float, device: torch.device | str | None = None
) -> Tensor:
    """Patch centres in seconds, float32 (N,).

    Sample i covers [i, i + 1) / sampling_rate, so equal patches at two rates share their centres.
    """
    return ((torch.arange(count, device=device, dtype=torch.float64) * stride + kernel / 2) / sampling_rate).to(
        torch.float32
    )


def token_valid(valid_samples: Tensor, count: int, kernel: int, stride: int) -> Tensor:
    """bool (B, N): True where a patch lies wholly inside the first valid_samples (B,) samples, before the padding."""
    ends = torch.arange(count, device=valid_samples.device) * stride + kernel
    return ends[None, :] <= valid_samples[:, None]


def token_elements(batch: int, samples: int, scales: Sequence[PatchScaleParams]) -> int:
    """Elements of all tokens of a batch: B x G x D x the tokens of every scale. What the choice of a kernel goes by."""
    groups, width = len(scales[0].weights), scales[0].bias.shape[-1]
    return batch * groups * width * sum(token_count(samples, scale.kernel, scale.stride) for scale in scales)
