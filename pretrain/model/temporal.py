"""The temporal encoder of one patch scale: pre-norm transformer blocks with rotary positions in seconds.

One encoder per scale, shared by all lead groups (the groups are folded into the batch axis). Legend: B sequences, N tokens, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import attention, rotary


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a residual branch per sequence and rescales the others. Identity in evaluation."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return branch
        keep = torch.rand(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * keep.to(branch.dtype) / (1.0 - self.rate)


class SelfAttention(nn.Module):
    """Multi-head self-attention over (B, N, D); key_mask bool (B, N), False = token of padded samples, None = all valid."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, seconds: Tensor, key_mask: Tensor | None) -> Tensor:
        B, N, D = tokens.shape
        q, k, v = self.qkv(tokens).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        mixed = attention(rotary(q, seconds), rotary(k, seconds), v, key_mask)
        return self.out(mixed.transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x)), with dropout and drop path on both branches."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float, drop_path: float) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, seconds: Tensor, key_mask: Tensor | None) -> Tensor:
        tokens = tokens + self.drop_path(self.dropout(self.attention(self.attention_norm(tokens), seconds, key_mask)))
        mlp = self.contract(F.gelu(self.expand(self.mlp_norm(tokens))))
        return tokens + self.drop_path(self.dropout(mlp))


class TemporalEncoder(nn.Module):
    """`depth` blocks and a final LayerNorm: tokens (B, N, D), seconds (N,) of the patch centres -> (B, N, D). Drop path grows linearly with depth."""

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: float, dropout: float, drop_path: float) -> None:
        super().__init__()
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, dropout, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, seconds: Tensor, key_mask: Tensor | None) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, seconds, key_mask)
        return self.norm(tokens)
