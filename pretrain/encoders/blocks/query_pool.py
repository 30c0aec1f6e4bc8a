"""Learned queries that each look for something else in the tokens of a record (the attentional pooler of CoCa).

Legend: B records, N tokens, D their width, Q queries, W width of the queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cardialign.kernels.attention import attention


class QueryPool(nn.Module):
    """Tokens (B, N, D), mask bool (B, N) or None -> (B, Q, W), normalised: multi-head attention of Q learned queries
    over the valid tokens, LayerNorm before and behind it. A record without valid tokens gives 0.

    Source: Yu et al. 2022 (CoCa), section 3.2.
    """

    def __init__(self, tokens: int, queries: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.query_norm, self.token_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(tokens), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(tokens, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        query = self.query(self.query_norm(self.queries)).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        query = query.expand(tokens.shape[0], -1, -1, -1)  # (B, H, Q, W / H)
        key, value = self.key_value(self.token_norm(tokens)).unflatten(-1, (2, self.heads, -1)).unbind(dim=2)
        seen = attention(query.to(key.dtype), key.transpose(1, 2), value.transpose(1, 2), mask)
        pooled = self.norm(self.out(seen.transpose(1, 2).flatten(2)))
        return pooled if mask is None else torch.where(mask.any(dim=1)[:, None, None], pooled, 0.0)
