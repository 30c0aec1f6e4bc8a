"""The patch embedding written plainly: conv1d, LayerNorm and GELU, one group after another.

For tests, as the definition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cardialign.kernels.patch_embed.embed import calibrated, check_patch_embed
from cardialign.kernels.patch_embed.geometry import LAYER_NORM_EPS, PatchScaleParams


def patch_embed_reference(
    signal: Tensor,
    lead_mask: Tensor,
    scales: Sequence[PatchScaleParams],
    groups: Sequence[Sequence[int]],
    *,
    gain: Tensor | None = None,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
) -> list[Tensor]:
    """Tokens (B, G, N_s, D) of every scale. Arguments and errors are those of `multi_scale_patch_embed`."""
    check_patch_embed(signal, lead_mask, scales, groups)
    signal = calibrated(signal, gain, mean, rstd)
    outputs = []
    for scale in scales:
        tokens = []
        for group, leads in enumerate(groups):
            mask = lead_mask[:, leads]
            x = torch.where(mask[:, :, None], signal[:, leads], torch.zeros_like(signal[:, leads])).to(
                scale.weights[group].dtype
            )
            convolved = F.conv1d(x, scale.weights[group], stride=scale.stride)
            rescaled = convolved * (len(leads) / mask.sum(1).clamp(min=1).to(x.dtype))[:, None, None]
            learned = (~mask).to(x.dtype) @ scale.missing[list(leads)]
            z = rescaled.transpose(1, 2) + scale.bias[group] + learned[:, None, :]
            tokens.append(
                F.gelu(F.layer_norm(z, z.shape[-1:], scale.ln_weight[group], scale.ln_bias[group], LAYER_NORM_EPS))
            )
        outputs.append(torch.stack(tokens, dim=1))
    return outputs
