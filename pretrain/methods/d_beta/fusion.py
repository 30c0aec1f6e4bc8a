"""Two streams that read each other, and what says whether they belong together.

Legend: b pairs, N tokens of an ECG behind its pooled one, M tokens of a text, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.kernels.attention import attention
from cardialign.pretrain.encoders.base import EncoderOutput
from cardialign.pretrain.methods.d_beta.config import DBetaConfig
from cardialign.pretrain.methods.parts.scoring import ReportReader, Scoring

PAIRS = 256
"""Pairs of a record and a text that are scored together."""


class Attend(nn.Module):
    """Multi-head attention of queries (b, N, D) over keys (b, M, D), key_mask bool (b, M) or None -> (b, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, key_mask: Tensor | None) -> Tensor:
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (self.query(queries), self.key(keys), self.value(keys))
        )
        return self.out(attention(q, k, v, key_mask).transpose(1, 2).flatten(2))


class CoAttention(nn.Module):
    """One layer of one stream, pre-norm: it attends to itself, then to the other stream, then comes an MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.own_norm, self.cross_norm, self.other_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(4))
        self.own, self.cross = Attend(width, heads), Attend(width, heads)
        self.expand = nn.Linear(width, round(width * mlp_ratio))
        self.contract = nn.Linear(round(width * mlp_ratio), width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, other: Tensor, other_mask: Tensor | None) -> Tensor:
        within = self.own_norm(x)
        x = x + self.dropout(self.own(within, within, mask))
        x = x + self.dropout(self.cross(self.cross_norm(x), self.other_norm(other), other_mask))
        return x + self.dropout(self.contract(F.gelu(self.expand(self.mlp_norm(x)))))


class Fused(NamedTuple):
    """text (b, M, D), normalised, behind the last layer; early_ecg (b, 1 + N, D) before layer `decoder_from`; aligned
    (b, 2), logits: not a pair, a pair."""

    text: Tensor
    early_ecg: Tensor
    aligned: Tensor


class Fusion(Scoring):
    """A linear map and a learned vector per modality, `depth` co-attention layers each, and the head of ETM.

    Both streams of a layer read the states of the layer before. The pair is the tanh-pooled first state of each stream.
    As `method: d_beta` scores texts by it, `fused`: the logit of "a pair" less that of "not a pair".
    """

    def __init__(self, config: DBetaConfig, ecg_width: int, text_width: int) -> None:
        super().__init__()
        D = config.width
        self.decoder_from = config.decoder_from
        self.ecg_in, self.text_in = nn.Linear(ecg_width, D), nn.Linear(text_width, D)
        self.kind = nn.Embedding(2, D)
        nn.init.normal_(self.kind.weight, std=0.02)
        self.ecg_layers, self.text_layers = (
            nn.ModuleList(CoAttention(D, config.heads, config.mlp_ratio, config.dropout) for _ in range(config.depth))
            for _ in range(2)
        )
        self.ecg_norm, self.text_norm = nn.LayerNorm(D), nn.LayerNorm(D)
        self.ecg_pooler, self.text_pooler = nn.Linear(D, D), nn.Linear(D, D)
        self.aligned = nn.Linear(2 * D, 2)

    def fuse(self, ecg: Tensor, ecg_mask: Tensor | None, text: Tensor, text_mask: Tensor | None) -> Fused:
        """ecg (b, 1 + N, ecg width), the pooled state first; text (b, M, text width); masks bool, False = not there."""
        of_ecg, of_text = self.kind(torch.arange(2, device=ecg.device)).to(ecg.dtype)
        a, b = self.ecg_in(ecg) + of_ecg, self.text_in(text) + of_text
        early = a
        for layer, (of_ecg, of_text) in enumerate(zip(self.ecg_layers, self.text_layers, strict=True)):
            if layer == self.decoder_from:
                early = a
            a, b = of_ecg(a, ecg_mask, b, text_mask), of_text(b, text_mask, a, ecg_mask)
        if self.decoder_from == len(self.ecg_layers):
            early = a
        b = self.text_norm(b)
        pair = [self.ecg_pooler(self.ecg_norm(a[:, 0])), self.text_pooler(b[:, 0])]
        return Fused(b, early, self.aligned(torch.tanh(torch.cat(pair, dim=1))))

    def words(self, texts: list[str], reader: ReportReader) -> dict[str, Tensor]:
        states, mask = reader.text_encoder.token_states(texts)
        return {"states": states, "mask": mask}

    def forward(self, output: EncoderOutput, words: dict[str, Tensor]) -> Tensor:
        """Every record beside every text, a pair at a time: float32 (b, P)."""
        assert output.tokens is not None and output.token_mask is not None
        ecg = torch.cat([output.features[:, None].to(output.tokens.dtype), output.tokens], dim=1)
        mask = F.pad(output.token_mask, (1, 0), value=True)
        b, P = len(ecg), len(words["states"])
        row, text = (each.flatten() for each in torch.meshgrid(torch.arange(b), torch.arange(P), indexing="ij"))
        parts = []
        for start in range(0, b * P, PAIRS):
            i, j = row[start : start + PAIRS].to(ecg.device), text[start : start + PAIRS].to(ecg.device)
            logits = self.fuse(ecg[i], mask[i], words["states"][j], words["mask"][j]).aligned.float()
            parts.append(logits[:, 1] - logits[:, 0])
        return torch.cat(parts).reshape(b, P)
