"""From the tokens of all scales to one feature vector per sequence, in two ways (config `encoder.pooling`).

The scales have different token counts, so they are joined on the channel axis either after pooling each one (`attention`) or after resampling
all to the medium scale's length (`resample`). Legend: B sequences, N tokens, D width, S scales.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.kernels.attention import attention_pool


class AttentionPool(nn.Module):
    """One learned query per head looks over the valid tokens: (B, N, D) -> (B, D). A sequence without valid tokens gives 0."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(heads, width // heads) * 0.5)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        return attention_pool(self.query, tokens, mask)


def resample_tokens(tokens: Tensor, mask: Tensor | None, length: int) -> Tensor:
    """(B, N, D) -> (B, length, D), linear along time; tokens of padded samples (mask (B, N) False) do not bleed into their neighbours."""

    def stretch(rows: Tensor) -> Tensor:
        return F.interpolate(rows.transpose(1, 2), size=length, mode="linear", align_corners=False).transpose(1, 2)

    if mask is None:
        return stretch(tokens)
    weight = mask[..., None].to(tokens.dtype)
    return stretch(torch.where(mask[..., None], tokens, 0.0)) / stretch(weight).clamp_min(1e-3)


class ScalePooling(nn.Module):
    """Token lists of S scales -> (B, S * D). `attention`: pool each scale, then join; `resample`: join at the medium scale's length, then pool."""

    def __init__(self, method: str, strides: list[int], width: int, heads: int) -> None:
        super().__init__()
        self.method = method
        self.medium = sorted(range(len(strides)), key=strides.__getitem__)[len(strides) // 2]
        widths = [width * len(strides)] if method == "resample" else [width] * len(strides)
        self.pools = nn.ModuleList(AttentionPool(w, heads) for w in widths)

    def forward(self, tokens: list[Tensor], masks: list[Tensor | None]) -> Tensor:
        if self.method == "resample":
            length = tokens[self.medium].shape[1]
            joined = torch.cat([resample_tokens(t, m, length) for t, m in zip(tokens, masks, strict=True)], dim=-1)
            return self.pools[0](joined, masks[self.medium])
        return torch.cat([pool(t, m) for pool, t, m in zip(self.pools, tokens, masks, strict=True)], dim=-1)
