"""Tokens as words of a learned book: the Gumbel-softmax choice of wav2vec 2.0 (Baevski et al. 2020; Jang et al. 2017).

Legend: C width of a token, G groups, V words of each group, d width of what is said.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cardialign.pretrain.methods.parts.gathering import summed, total


class Quantised(NamedTuple):
    """said (..., d), the chosen words one beside the other; chosen int64 (..., G), their numbers; shares (..., G, V),
    how likely each word was, before any noise."""

    said: Tensor
    chosen: Tensor
    shares: Tensor


class GumbelQuantiser(nn.Module):
    """Of each group one word is chosen by its log odds and noise; the gradient is that of the soft choice."""

    def __init__(self, width: int, groups: int, words: int, said_width: int) -> None:
        super().__init__()
        self.odds = nn.Linear(width, groups * words)
        nn.init.normal_(self.odds.weight)
        nn.init.zeros_(self.odds.bias)
        self.words = nn.Parameter(torch.rand(groups, words, said_width // groups))

    def forward(self, tokens: Tensor, noise: Tensor, softness: Tensor) -> Quantised:
        """tokens (..., C), noise (..., G, V) standard Gumbel, softness (...): the temperature of the choice."""
        odds = self.odds(tokens).unflatten(-1, self.words.shape[:2])
        odds = odds.to(torch.promote_types(odds.dtype, torch.float32))
        soft = ((odds + noise) / softness[..., None, None]).softmax(dim=-1)
        chosen = soft.argmax(dim=-1)
        hard = torch.zeros_like(soft).scatter_(-1, chosen[..., None], 1.0)
        picked = hard + (soft - soft.detach())
        said = torch.einsum("...gv,gvd->...gd", picked, self.words.to(picked.dtype)).flatten(-2)
        return Quantised(said, chosen, odds.softmax(dim=-1))


def perplexity(shares: Tensor, counts: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Words in use, 0-dim, between G and G V: the sum over the groups of e^H of the mean of the shares.

    shares (b, G, V) are sums over the tokens of each row, counts (b,) how many tokens; the mean is over all tokens of
    the global batch. G V where there is no token. The gradient is exact for the rows of this rank.
    """
    everything, tokens = summed(shares.double().sum(dim=0), group), total(counts.double().sum(), group)
    mean = everything / tokens.clamp_min(1)
    found = torch.exp(-(mean * torch.log(mean + 1e-7)).sum(dim=-1)).sum()
    return torch.where(tokens > 0, found, float(mean.numel())).to(shares.dtype)
