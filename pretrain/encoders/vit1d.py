"""Vision transformers over patches of time: of the whole record, or of each lead.

A masked autoencoder may encode a part of the patches.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.kernels.patch_embed import token_seconds, token_valid
from cardialign.pretrain.config import Depth, DropRate, EncoderConfig, Milliseconds, MlpRatio, Width, refuse
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderOutput
from cardialign.pretrain.encoders.blocks.normalise import normalise
from cardialign.pretrain.encoders.blocks.pooling import token_pooling
from cardialign.pretrain.encoders.blocks.temporal import TemporalEncoder, head_problems

LEADS = len(STANDARD_LEADS)
SIZES: dict[str, tuple[int, int, int]] = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width, depth and heads of the vision transformers of these names."""
PATCH_MS: dict[str, float] = {"record": 200.0, "lead": 300.0}


class Vit1dConfig(EncoderConfig):
    """`size` sets width, depth and heads; each may be overridden.

    patches: `record`: one token per stretch of time, of all leads together; `lead`: one per stretch and lead.
    patch_ms: length of a patch in milliseconds; null = 200 (record) or 300 (lead). What is left at the end of a record
    is not read.
    attention: `packed` leaves out the tokens of padded samples and of missing leads instead of masking them: same
    result, less work where much is missing.
    """

    name: str = "vit1d"
    size: Literal["tiny", "small", "base"] = "tiny"
    width: Width | None = None
    depth: Depth | None = None
    heads: Depth | None = None
    mlp_ratio: MlpRatio = 4.0
    dropout: DropRate = 0.0
    drop_path: DropRate = 0.0
    patches: Literal["record", "lead"] = "record"
    patch_ms: Milliseconds | None = None
    pooling: Literal["mean", "attention", "selector"] = "mean"
    attention: Literal["dense", "packed"] = "dense"

    @model_validator(mode="after")
    def _fill_in_and_check(self) -> Vit1dConfig:
        width, depth, heads = SIZES[self.size]
        filled = {"width": width, "depth": depth, "heads": heads, "patch_ms": PATCH_MS[self.patches]}
        for name, value in filled.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        assert self.width is not None and self.heads is not None
        refuse(head_problems(self.width, self.heads, self.mlp_ratio))
        return self


class Patches(NamedTuple):
    """Patches before the transformer.

    tokens (B, N, D); mask bool (B, N), or None when all are valid; seconds of their centres, (N,) or (B, N).
    With `lead` patches the tokens of a lead stand together, in lead order: patch n of lead l is token l * (N / 12) + n.
    """

    tokens: Tensor
    mask: Tensor | None
    seconds: Tensor

    def keep(self, kept: Tensor) -> Patches:
        """Only the tokens at places kept, int64 (B, M), each with its own mask and time: seconds come out as (B, M)."""
        rows = torch.arange(kept.shape[0], device=kept.device)[:, None]
        mask = None if self.mask is None else self.mask[rows, kept]
        seconds = self.seconds[kept] if self.seconds.ndim == 1 else self.seconds[rows, kept]
        return Patches(self.tokens[rows, kept], mask, seconds)


def patch_length(patch_ms: float, spec: SignalSpec, most: int) -> int:
    """Samples of a patch. Raises UsageError for one that is shorter than a sample or longer than `most` of them."""
    samples = round(patch_ms * spec.sampling_rate / 1000.0)
    if not 1 <= samples <= most:
        longest = "the record" if most == spec.samples else "half the record"
        what = "shorter than one sample" if samples < 1 else f"longer than {longest}"
        raise UsageError(
            f"encoder.patch_ms {patch_ms:g} is {what} ({spec.samples} samples at {spec.sampling_rate:g} Hz)",
            f"choose {1000.0 / spec.sampling_rate:g} to {1000.0 * most / spec.sampling_rate:g}",
        )
    return samples


def record_patches(signal: Tensor, samples: int) -> Tensor:
    """(B, 12, T) -> patches of that many samples (B, N, 12 samples), lead after lead; what fills none is left out."""
    cut = signal[..., : signal.shape[-1] // samples * samples].unflatten(-1, (-1, samples))
    return cut.transpose(1, 2).flatten(2)


class PatchProjection(nn.Module):
    """One linear map of every patch, and what says which lead it is of or which leads it lacks.

    values (B, N, P) -> (B, N, width). Patches of K samples have P = 12 K values of a whole record, or P = K of a lead;
    the leads follow each other.
    """

    lead_embedding: Tensor
    missing: Tensor

    def __init__(self, values: int, width: int, per_lead: bool) -> None:
        super().__init__()
        self.per_lead = per_lead
        self.weight = nn.Parameter(torch.randn(width, values) * 2.0 * values**-0.5)
        # The LayerNorm of the first block forgets the length of a token. Beside a bias of about the size of a projected
        # wave (mV) the voltage of a patch is an angle, which stays.
        self.bias = nn.Parameter(torch.randn(width) * 0.5)
        leads = nn.Parameter(torch.randn(LEADS, width) * 0.02)
        self.register_parameter("lead_embedding" if per_lead else "missing", leads)

    def forward(self, values: Tensor, lead_mask: Tensor) -> Tensor:
        tokens = F.linear(values.to(self.weight.dtype), self.weight, self.bias)
        if self.per_lead:
            return tokens + self.lead_embedding.repeat_interleave(values.shape[1] // LEADS, dim=0).to(tokens.dtype)
        missing = (~lead_mask).to(self.missing.dtype) @ self.missing  # (B, width): absent is not flat
        return tokens + missing[:, None].to(tokens.dtype)


class Vit1d(EcgEncoder):
    """Patches of time -> pre-norm transformer -> one unit vector per record.

    `record` patches as in MERL's ViT (Liu et al. 2024): one linear map of all twelve leads, pooled by the mean; MERL's
    own patches are 100 ms long.
    `lead` patches as in ST-MEM (Na et al. 2024): one map shared by the leads, a learned vector per lead, all tokens in
    one sequence; its patches are 75 samples at 250 Hz.
    Ours: rotary positions in seconds in place of added ones, and no tokens but patches (ST-MEM puts one at both ends of
    a lead). Sizes as in Dosovitskiy et al. (2021) and Touvron et al. (2021): tiny 192 wide, 12 blocks, 3 heads; small
    384, 12, 6; base 768, 12, 12.

    A masked autoencoder calls the parts of `forward` itself: `patch_values` (what is to be reconstructed),
    `embed_patches`, `Patches.keep`, `encode_patches`.
    Raises UsageError for a patch that does not fit the record.
    Legend: B batch, T samples, N tokens, K samples of a patch, D width.
    """

    Config: ClassVar[type[EncoderConfig]] = Vit1dConfig

    def __init__(self, config: Vit1dConfig, spec: SignalSpec, normalisation: str = "none") -> None:
        super().__init__(spec, normalisation)
        assert config.width is not None and config.depth is not None and config.heads is not None
        assert config.patch_ms is not None
        self.per_lead = self.removes_tokens = config.patches == "lead"
        self.patch_samples = patch_length(config.patch_ms, spec, spec.samples)
        self.feature_width = self.token_width = config.width
        self.projection_in = PatchProjection(
            self.patch_samples * (1 if self.per_lead else LEADS), config.width, self.per_lead
        )
        self.temporal = TemporalEncoder(
            config.width,
            config.depth,
            config.heads,
            config.mlp_ratio,
            config.dropout,
            config.drop_path,
            config.attention,
        )
        self.pool = token_pooling(config.pooling, config.width, config.heads)
        self.projection = nn.Linear(config.width, config.embedding_dim)

    def patch_values(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None) -> Tensor:
        """The normalised samples that each token is made of, float32, 0 wherever nothing was recorded.

        (B, N, K) of `lead` patches; (B, N, 12 K) of `record` patches, lead after lead.
        """
        signal = normalise(signal, lead_mask, valid_samples, self.normalisation)
        K = self.patch_samples
        if not self.per_lead:
            return record_patches(signal, K)
        return signal[..., : signal.shape[-1] // K * K].unflatten(-1, (-1, K)).flatten(1, 2)

    def embed_patches(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None) -> Patches:
        """Inputs of `forward` -> tokens before the transformer, which of them were recorded, and their times."""
        count, K = signal.shape[-1] // self.patch_samples, self.patch_samples
        tokens = self.projection_in(self.patch_values(signal, lead_mask, valid_samples), lead_mask)
        seconds = token_seconds(count, K, K, self.sampling_rate, tokens.device)
        recorded = None if valid_samples is None else token_valid(valid_samples, count, K, K)
        if not self.per_lead:
            return Patches(tokens, recorded, seconds)
        of_lead = lead_mask[:, :, None] if recorded is None else lead_mask[:, :, None] & recorded[:, None]
        return Patches(tokens, of_lead.expand(-1, -1, count).flatten(1), seconds.repeat(LEADS))

    def _whole(self, missing: Tensor) -> Tensor:
        """Missing samples bool (B, 12, T) -> which `lead` patches have none of them, bool (B, N)."""
        if not self.per_lead:
            raise ValueError("patches of whole records cannot be left out of one lead; set encoder.patches to lead")
        K = self.patch_samples
        return ~missing[..., : missing.shape[-1] // K * K].unflatten(-1, (-1, K)).any(dim=-1).flatten(1)

    def encode_patches(self, patches: Patches, key_weight: Tensor | None = None) -> Tensor:
        """All patches, or those that were kept -> (B, N, D) after the transformer.

        Nobody attends to a token whose mask is False, and what comes out at its place means nothing.
        key_weight (B, N): how much each is attended to; None: all alike (`TemporalEncoder`).
        """
        return self.temporal(patches.tokens, patches.seconds, patches.mask, key_weight)

    def forward(
        self,
        signal: Tensor,
        lead_mask: Tensor,
        valid_samples: Tensor | None = None,
        return_tokens: bool = False,
        missing: Tensor | None = None,
    ) -> EncoderOutput:
        """As every encoder; N = T / K tokens, times 12 for `lead` patches, lead after lead.

        missing bool (B, 12, T), for `lead` patches alone: a patch that holds such a sample is left out.
        """
        patches = self.embed_patches(signal, lead_mask, valid_samples)
        if missing is not None:
            patches = patches._replace(mask=self._whole(missing) & (True if patches.mask is None else patches.mask))
        tokens = self.encode_patches(patches)
        present = lead_mask.any(dim=1, keepdim=True).expand(tokens.shape[:2])
        token_mask = present if patches.mask is None else present & patches.mask
        features = self.pool(tokens, token_mask)
        embedding = F.normalize(self.projection(features).float(), dim=-1)
        output = EncoderOutput(embedding, features, valid_samples=valid_samples)
        return output._replace(tokens=tokens, token_mask=token_mask) if return_tokens else output
