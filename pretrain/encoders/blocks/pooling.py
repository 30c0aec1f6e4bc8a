"""From tokens to one feature vector per sequence.

One list of tokens is pooled by its mean or by attention (`token_pooling`). The lists of several scales have different
lengths: they are joined on the channel axis after pooling each one (`attention`, `max`) or after resampling all to the
medium scale's length (`resample`).
Legend: B sequences, N tokens, D width, S scales.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.kernels.attention import attention_pool
from cardialign.kernels.attention.weighted import LEAST


class AttentionPool(nn.Module):
    """One learned query per head looks over the valid tokens: (B, N, D) -> (B, D).

    A sequence without valid tokens gives 0.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(heads, width // heads) * 0.5)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        return attention_pool(self.query, tokens, mask)


class MeanPool(nn.Module):
    """The mean of the valid tokens, in float32 or better: (B, N, D) -> (B, D). A sequence without any gives 0."""

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        exact = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        if mask is None:
            return exact.mean(dim=1).to(tokens.dtype)
        count = mask.sum(dim=1, keepdim=True).clamp_min(1)
        return (torch.where(mask[..., None], exact, 0.0).sum(dim=1) / count).to(tokens.dtype)


class MaxPool(nn.Module):
    """The largest value of each channel over the valid tokens: (B, N, D) -> (B, D). A sequence without any gives 0."""

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return tokens.amax(dim=1)
        highest = torch.where(mask[..., None], tokens, -torch.inf).amax(dim=1)
        return torch.where(mask.any(dim=1, keepdim=True), highest, 0.0)


class SelectorPool(nn.Module):
    """Every token says for itself how much it counts: sum_k w_k h_k with w = softmax over the valid tokens of u(h_k).

    u is a layer of the tokens' width, GELU, and one number. A sequence without valid tokens gives 0.
    Source: the adaptive selector of SCAR; its form is ours.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)  # a constant added to all scores changes no softmax

    def log_weights(self, tokens: Tensor, mask: Tensor | None, key_weight: Tensor | None = None) -> Tensor:
        """log w float32 or better (B, N), -inf for a token that is not valid; of a sequence without any, over all.

        key_weight (B, N): how much a token counts beforehand, as in attention (`weigh_keys`).
        """
        scores = self.score(F.gelu(self.hidden(tokens))).squeeze(-1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if key_weight is not None:
            scores = scores + torch.log(key_weight + LEAST)
        if mask is not None:
            scores = scores.masked_fill(~(mask | ~mask.any(dim=1, keepdim=True)), -torch.inf)
        return torch.log_softmax(scores, dim=1)

    def forward(self, tokens: Tensor, mask: Tensor | None, key_weight: Tensor | None = None) -> Tensor:
        return self.pooled(tokens, mask, self.log_weights(tokens, mask, key_weight))

    def pooled(self, tokens: Tensor, mask: Tensor | None, log_weights: Tensor) -> Tensor:
        """(B, D) of weights that are known already."""
        weight = log_weights.exp()
        if mask is not None:
            weight = weight * mask.any(dim=1, keepdim=True)
            tokens = torch.where(mask[..., None], tokens, 0.0)  # what stands at the others means nothing
        return torch.einsum("bn,bnd->bd", weight.to(tokens.dtype), tokens)


def token_pooling(name: str, width: int, heads: int) -> nn.Module:
    """`mean`, `attention` or `selector`, where `encoder.pooling` is of one list of tokens: tokens, mask -> (B, D)."""
    if name == "selector":
        return SelectorPool(width)
    return MeanPool() if name == "mean" else AttentionPool(width, heads)


def resample_tokens(tokens: Tensor, mask: Tensor | None, length: int) -> Tensor:
    """(B, N, D) -> (B, length, D), linear along time;
    tokens of padded samples (mask (B, N) False) do not bleed into their neighbours.
    """

    def stretch(rows: Tensor) -> Tensor:
        return F.interpolate(rows.transpose(1, 2), size=length, mode="linear", align_corners=False).transpose(1, 2)

    if mask is None:
        return stretch(tokens)
    weight = mask[..., None].to(tokens.dtype)
    return stretch(torch.where(mask[..., None], tokens, 0.0)) / stretch(weight).clamp_min(1e-3)


class ScalePooling(nn.Module):
    """Token lists of S scales -> (B, S * D).

    `attention`, `max`: pool each scale, then join; `resample`: join at the medium scale's length, then pool.
    """

    def __init__(self, method: str, strides: list[int], width: int, heads: int) -> None:
        super().__init__()
        self.method = method
        self.medium = sorted(range(len(strides)), key=strides.__getitem__)[len(strides) // 2]
        widths = [width * len(strides)] if method == "resample" else [width] * len(strides)
        self.pools = nn.ModuleList(MaxPool() if method == "max" else AttentionPool(w, heads) for w in widths)

    def forward(self, tokens: list[Tensor], masks: list[Tensor | None]) -> Tensor:
        if self.method == "resample":
            length = tokens[self.medium].shape[1]
            joined = torch.cat([resample_tokens(t, m, length) for t, m in zip(tokens, masks, strict=True)], dim=-1)
            return self.pools[0](joined, masks[self.medium])
        return torch.cat([pool(t, m) for pool, t, m in zip(self.pools, tokens, masks, strict=True)], dim=-1)
