"""The ECG encoder of the main recipe: multi-view cardiac spatial encoding over multi-scale temporal encoders. The forward pass is one page."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.kernels.patch_embed import token_seconds, token_valid
from cardialign.pretrain.config import ModelConfig
from cardialign.pretrain.encoders.blocks.lead_groups import group_attention
from cardialign.pretrain.encoders.blocks.normalise import normalise
from cardialign.pretrain.encoders.blocks.patches import PatchEmbedding, samples_of
from cardialign.pretrain.encoders.blocks.pooling import ScalePooling
from cardialign.pretrain.encoders.blocks.temporal import TemporalEncoder


class EncoderOutput(NamedTuple):
    """embedding float32 (B, embedding_dim), L2-normalised; group_weights float32 (B, G), 0 for a missing group, else summing to 1;
    features (B, G * S * D), pooled and group-weighted but not projected (for linear probes); tokens per scale (B, G, N_s, D) when asked for."""

    embedding: Tensor
    group_weights: Tensor
    features: Tensor
    tokens: list[Tensor] | None = None


class EcgEncoder(nn.Module):
    """Twelve leads in mV -> one unit vector per record.

    Sizes (parameters with the default groups and patches at 500 Hz, embedding_dim 256): tiny 0.64 M, small 10.8 M, base 116 M.
    Raises UsageError for patches that do not fit the record. Legend: B batch, T samples, G lead groups, S scales, N tokens, D width.
    """

    membership: Tensor

    def __init__(self, config: ModelConfig, sampling_rate: float, samples: int, normalisation: str = "none") -> None:
        super().__init__()
        assert config.width is not None and config.depth is not None and config.heads is not None
        self.sampling_rate, self.samples, self.normalisation = sampling_rate, samples, normalisation
        self.packs = config.attention == "packed"
        self.group_names = tuple(config.lead_groups)
        self.scales = [samples_of(scale, sampling_rate, samples) for scale in config.patches]
        groups = [[STANDARD_LEADS.index(lead) for lead in leads] for leads in config.lead_groups.values()]
        features = len(self.scales) * config.width

        self.patch_embedding = PatchEmbedding(self.scales, groups, config.width)
        self.temporal = nn.ModuleList(
            TemporalEncoder(
                config.width,
                config.depth,
                config.heads,
                config.mlp_ratio,
                config.dropout,
                config.drop_path,
                config.attention,
            )
            for _ in self.scales
        )
        self.pooling = ScalePooling(config.pooling, [stride for _, stride in self.scales], config.width, config.heads)
        self.feature_norm = nn.LayerNorm(features)
        self.group_attention = group_attention(config.group_attention, len(groups), features)
        self.projection = nn.Linear(len(groups) * features, config.embedding_dim)

        membership = torch.zeros(len(groups), len(STANDARD_LEADS), dtype=torch.bool)
        for g, leads in enumerate(groups):
            membership[g, leads] = True
        self.register_buffer("membership", membership, persistent=False)

    def forward(
        self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None, return_tokens: bool = False
    ) -> EncoderOutput:
        """signal (B, 12, T) in mV, lead_mask bool (B, 12), valid_samples int (B,) or None when no record is padded (faster: no key masks)."""
        B, G = signal.shape[0], len(self.group_names)
        present = (lead_mask[:, None, :] & self.membership).any(dim=-1)  # (B, G)
        # A missing group has weight 0 below: packed sequences leave its tokens out. A traced graph may not depend on what is missing.
        skip_absent = self.packs and not torch.compiler.is_compiling() and not bool(present.all())

        signal = normalise(signal, lead_mask, valid_samples, self.normalisation)
        scale_tokens = self.patch_embedding(signal, lead_mask)  # S x (B, G, N_s, D)

        encoded: list[Tensor] = []
        masks: list[Tensor | None] = []
        for (kernel, stride), tokens, temporal in zip(self.scales, scale_tokens, self.temporal, strict=True):
            N = tokens.shape[2]
            seconds = token_seconds(N, kernel, stride, self.sampling_rate, tokens.device)
            mask = None
            if valid_samples is not None:
                mask = token_valid(valid_samples, N, kernel, stride)[:, None, :].expand(B, G, N).flatten(0, 1)
            if skip_absent:
                there = present.flatten()[:, None].expand(B * G, N)
                mask = there if mask is None else mask & there
            encoded.append(
                temporal(tokens.flatten(0, 1), seconds, mask)
            )  # the groups share the encoder: (B * G, N_s, D)
            masks.append(mask)

        views = self.feature_norm(self.pooling(encoded, masks)).unflatten(0, (B, G))  # (B, G, S * D)
        weights = self.group_attention(views, present)  # (B, G)
        weighted = views * weights[..., None].to(views.dtype)
        features = torch.where(present[..., None], weighted, 0.0).flatten(1)  # (B, G * S * D)
        embedding = F.normalize(self.projection(features).float(), dim=-1)
        tokens_out = [t.unflatten(0, (B, G)) for t in encoded] if return_tokens else None
        return EncoderOutput(embedding, weights, features, tokens_out)
