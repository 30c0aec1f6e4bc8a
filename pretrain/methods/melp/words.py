"""The token level: each word of a report is foretold from the words before it and from the ECG.

Legend: b records, N words, d width of the report encoder's states, C caption queries, D width of the decoder,
V vocabulary, U words that are asked for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.kernels.attention import attention
from cardialign.pretrain.encoders.blocks.query_pool import QueryPool
from cardialign.pretrain.methods.melp.config import MelpConfig
from cardialign.pretrain.methods.melp.sentences import NOT_ASKED


class DecoderLayer(nn.Module):
    """Pre-norm: words attend to the words before them, then to the captions of the ECG, then comes an MLP.

    words (b, N, D), captions (b, C, D) -> (b, N, D).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.own_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.own_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.expand = nn.Linear(width, round(width * mlp_ratio))
        self.contract = nn.Linear(round(width * mlp_ratio), width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, words: Tensor, captions: Tensor) -> Tensor:
        q, k, v = (each.transpose(1, 2) for each in self._heads(self.qkv(self.own_norm(words)), 3))
        # Padding is behind the words: none of them sees it.
        own = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        words = words + self.dropout(self.own_out(own.transpose(1, 2).flatten(2)))
        (q,) = (each.transpose(1, 2) for each in self._heads(self.query(self.cross_norm(words)), 1))
        k, v = (each.transpose(1, 2) for each in self._heads(self.key_value(captions), 2))
        words = words + self.dropout(self.cross_out(attention(q, k, v).transpose(1, 2).flatten(2)))
        return words + self.dropout(self.contract(F.gelu(self.expand(self.mlp_norm(words)))))

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return x.unflatten(-1, (parts, self.heads, -1)).unbind(dim=2)


class WordHead(nn.Module):
    """(b, N, D), words int64 (U,) of the vocabulary -> logits float32 (b, N, U)."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocabulary, width) * 0.02)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        return F.linear(hidden, self.weight[words].to(hidden.dtype), self.bias[words].to(hidden.dtype)).float()


class Captioner(nn.Module):
    """Caption queries over the tokens of an ECG, and the decoder that foretells a report from them.

    occurs: bool (V,), the words that are asked for; none before a text bank was seen.
    """

    occurs: Tensor

    def __init__(self, config: MelpConfig, tokens: int, states: int, vocabulary: int) -> None:
        super().__init__()
        self.captions = QueryPool(tokens, config.captions, config.width, config.heads)
        self.words_in = nn.Linear(states, config.width)
        self.layers = nn.ModuleList(
            DecoderLayer(config.width, config.heads, config.mlp_ratio, config.dropout) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = WordHead(config.width, vocabulary)
        self.register_buffer("occurs", torch.zeros(vocabulary, dtype=torch.bool))

    def forward(self, captions: Tensor, states: Tensor, words: Tensor) -> Tensor:
        """Captions (b, C, D), states (b, N, d), words int64 (U,) -> logits float32 (b, N, U) of what follows."""
        hidden = self.words_in(states.to(self.words_in.weight.dtype))
        for layer in self.layers:
            hidden = layer(hidden, captions)
        return self.head(self.norm(hidden), words)


def word_log_likelihoods(logits: Tensor, target: Tensor) -> Tensor:
    """Logits (b, N, U), target int64 (b, N) among the U -> log-probability of each target (b, N), 0 where none is
    asked for."""
    chosen = logits.log_softmax(dim=-1).gather(-1, target.clamp_min(0)[..., None]).squeeze(-1)
    return torch.where(target == NOT_ASKED, 0.0, chosen)
