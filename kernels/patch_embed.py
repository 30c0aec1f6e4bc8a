"""Multi-scale patch embedding of lead groups: strided convolution, LayerNorm and GELU, token-major.

Shapes: B batch, L leads, T samples, G lead groups, L_g leads of a group, K kernel samples, N tokens = floor((T - K) / stride) + 1, D width.
A missing lead adds nothing; the present leads of its group are rescaled by L_g / present, and the group's tokens get the learned
embedding of every missing lead, so "absent" is never confused with "flat".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LAYER_NORM_EPS = 1e-5


@dataclass
class PatchScaleParams:
    """Parameters of one scale: kernel and stride in samples, and learned tensors.

    weights: one (D, L_g, K) per group. bias, ln_weight, ln_bias: (G, D). missing: (L, D), the embedding of each missing lead.
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
            f"kernel {kernel} and stride {stride} must be at least one sample; choose longer patches or a higher sampling rate"
        )
    if samples < kernel:
        raise ValueError(
            f"the signal has {samples} samples, the patch kernel {kernel}; choose a kernel of at most {samples} samples or longer signals"
        )
    return (samples - kernel) // stride + 1


def token_seconds(count: int, kernel: int, stride: int, sampling_rate: float, device: torch.device | str | None = None) -> Tensor:
    """Patch centres in seconds, float32 (N,). Sample i covers [i, i + 1) / sampling_rate, so equal patches at two rates share their centres."""
    return ((torch.arange(count, device=device, dtype=torch.float64) * stride + kernel / 2) / sampling_rate).to(torch.float32)


def token_valid(valid_samples: Tensor, count: int, kernel: int, stride: int) -> Tensor:
    """bool (B, N): True where a patch lies wholly inside the first valid_samples (B,) samples, before the padding."""
    ends = torch.arange(count, device=valid_samples.device) * stride + kernel
    return ends[None, :] <= valid_samples[:, None]


def multi_scale_patch_embed(
    signal: Tensor, lead_mask: Tensor, scales: Sequence[PatchScaleParams], groups: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Tokens (B, G, N_s, D) of every scale, in the type of the weights.

    signal: (B, L, T), the unit is the caller's (mV or normalised); whatever a missing lead holds, NaN included, is ignored.
    lead_mask: bool (B, L), True = present. groups: lead indices of every group.
    Differentiable with respect to all parameters, and to the signal where it requires a gradient.
    Raises ValueError when the signal is shorter than a kernel or parameters do not fit the groups.
    Source: multi-scale strided patch embeddings per lead group (MS-SATE over MVCSE groups). `patch_embed_reference` defines the result.
    """
    check_patch_embed(signal, lead_mask, scales, groups)
    # Every tensor operation has a price of its own on small batches, so leads are gathered once and shared by all scales.
    present = _present_signal(signal, lead_mask).to(scales[0].weights[0].dtype)
    absent = (~lead_mask).to(scales[0].missing.dtype)
    group_signals, factors, absents = [], [], []
    for leads in groups:
        index = torch.tensor(leads, device=signal.device)
        group_signals.append(present.index_select(1, index))
        absents.append(absent.index_select(1, index))
        factors.append(_present_factor(lead_mask.index_select(1, index), present.dtype))
    return [_scale_tokens(scale, groups, group_signals, factors, absents) for scale in scales]


def _scale_tokens(
    scale: PatchScaleParams, groups: Sequence[Sequence[int]], signals: list[Tensor], factors: list[Tensor], absents: list[Tensor]
) -> Tensor:
    tokens = []
    for group, leads in enumerate(groups):
        weight = scale.weights[group]
        shift = absents[group] @ scale.missing[list(leads)] + scale.bias[group]
        patches = _patches(signals[group], scale.kernel, scale.stride)
        projected = patches @ weight.flatten(1).T
        z = torch.addcmul(shift[:, None, :], projected, factors[group][:, None, None])
        tokens.append(F.gelu(F.layer_norm(z, (z.shape[-1],), scale.ln_weight[group], scale.ln_bias[group], LAYER_NORM_EPS)))
    return torch.stack(tokens, dim=1)


def _patches(signal: Tensor, kernel: int, stride: int) -> Tensor:
    """(B, L_g, T) -> (B, N, L_g * K)."""
    count = token_count(signal.shape[-1], kernel, stride)
    if stride == kernel:
        cut = signal[..., : count * kernel].unflatten(-1, (count, kernel))
    else:
        cut = signal.unfold(-1, kernel, stride)
    return cut.transpose(1, 2).flatten(2)


def _present_signal(signal: Tensor, lead_mask: Tensor) -> Tensor:
    # where, not a product: NaN times 0 is NaN
    return torch.where(lead_mask[:, :, None], signal, torch.zeros((), dtype=signal.dtype, device=signal.device))


def _present_factor(group_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L_g) -> (B,): L_g / present, finite when none is."""
    return group_mask.shape[1] / group_mask.sum(1).clamp(min=1).to(dtype)


def patch_embed_reference(
    signal: Tensor, lead_mask: Tensor, scales: Sequence[PatchScaleParams], groups: Sequence[Sequence[int]]
) -> list[Tensor]:
    """The same tokens written plainly: conv1d, LayerNorm and GELU, one group after another. For tests and as the definition."""
    check_patch_embed(signal, lead_mask, scales, groups)
    outputs = []
    for scale in scales:
        tokens = []
        for group, leads in enumerate(groups):
            mask = lead_mask[:, leads]
            x = torch.where(mask[:, :, None], signal[:, leads], torch.zeros_like(signal[:, leads])).to(scale.weights[group].dtype)
            convolved = F.conv1d(x, scale.weights[group], stride=scale.stride)
            rescaled = convolved * (len(leads) / mask.sum(1).clamp(min=1).to(x.dtype))[:, None, None]
            learned = (~mask).to(x.dtype) @ scale.missing[list(leads)]
            z = rescaled.transpose(1, 2) + scale.bias[group] + learned[:, None, :]
            tokens.append(F.gelu(F.layer_norm(z, z.shape[-1:], scale.ln_weight[group], scale.ln_bias[group], LAYER_NORM_EPS)))
        outputs.append(torch.stack(tokens, dim=1))
    return outputs


def check_patch_embed(signal: Tensor, lead_mask: Tensor, scales: Sequence[PatchScaleParams], groups: Sequence[Sequence[int]]) -> None:
    """Raise ValueError, naming the numbers, when signal, mask, parameters and groups do not fit together."""
    if signal.ndim != 3:
        raise ValueError(f"signal has shape {tuple(signal.shape)}; pass (batch, leads, samples)")
    if lead_mask.dtype != torch.bool or lead_mask.shape != signal.shape[:2]:
        raise ValueError(f"lead_mask is {lead_mask.dtype} {tuple(lead_mask.shape)}; pass bool {tuple(signal.shape[:2])}, True = present")
    if not scales or not groups:
        raise ValueError("scales or groups is empty; pass at least one of each")
    leads = signal.shape[1]
    for number, group in enumerate(groups):
        if not group or not all(0 <= lead < leads for lead in group):
            raise ValueError(f"group {number} has leads {list(group)}; name one or more leads from 0 to {leads - 1}")
    for scale in scales:
        token_count(signal.shape[-1], scale.kernel, scale.stride)
        width = scale.bias.shape[-1]
        expected = [(width, len(group), scale.kernel) for group in groups]
        found = [tuple(weight.shape) for weight in scale.weights]
        if found != expected:
            raise ValueError(f"weights of the {scale.kernel}-sample scale have shapes {found}; the groups need {expected}")
