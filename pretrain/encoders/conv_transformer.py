"""The wav2vec 2.0 family: convolutions that halve the signal, a convolution that says where a token stands, and a
transformer. ECG-FM, MELP and D-BETA start from it.

A method may hide tokens before the transformer sees them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.kernels.patch_embed import token_seconds, token_valid
from cardialign.pretrain.config import Depth, DropRate, EncoderConfig, Fraction, MlpRatio, Width, refuse
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderOutput
from cardialign.pretrain.encoders.blocks.channel_norm import MaskedGroupNorm, channel_norm
from cardialign.pretrain.encoders.blocks.normalise import normalise
from cardialign.pretrain.encoders.blocks.pooling import token_pooling
from cardialign.pretrain.encoders.blocks.query_pool import QueryPool
from cardialign.pretrain.encoders.blocks.temporal import TemporalEncoder, head_problems
from cardialign.pretrain.encoders.vit1d import Patches, record_patches

LEADS = len(STANDARD_LEADS)
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (192, 4, 3, 64),
    "small": (768, 8, 12, 256),
    "base": (768, 12, 12, 256),
    "large": (1024, 24, 16, 256),
}
"""Width, depth, heads and channels of the convolutions. small is MELP's and D-BETA's, base ECG-FM's; tiny is ours."""


class ConvTransformerConfig(EncoderConfig):
    """`size` sets width, depth, heads and channels; each may be overridden.

    convolutions: how often the signal is halved before the transformer: 4 make a token of 16 samples.
    norm: behind the first convolution, over one record. `group` and `layer` keep the voltage in sight; `channel` is the
    published one: every channel by itself, which forgets it.
    position_kernel, position_groups: tokens and groups of the convolution that says where a token stands.
    feature_grad_mult: what the gradient of the convolutions is multiplied by; published: 0.1. 0 leaves them as they
    are.
    pooling: `cls` puts a learned token before the others, whose state is the feature vector. `queries`: as many learned
    queries of query_width look over the tokens, each for itself (`EncoderOutput.views`); the features are their mean.
    pooler: the embedding is the unit vector of W f (`linear`) or of tanh(W f) (`tanh`, as D-BETA compares them); f are
    the features.
    attention: as of `vit1d`.
    """

    name: str = "conv_transformer"
    size: Literal["tiny", "small", "base", "large"] = "tiny"
    width: Width | None = None
    depth: Depth | None = None
    heads: Depth | None = None
    channels: Width | None = None
    convolutions: Annotated[int, Field(ge=1, le=10)] = 4
    norm: Literal["group", "layer", "channel"] = "group"
    position_kernel: Annotated[int, Field(ge=1, le=1024)] = 128
    position_groups: Depth = 16
    feature_grad_mult: Fraction = 1.0
    mlp_ratio: MlpRatio = 4.0
    dropout: DropRate = 0.0
    drop_path: DropRate = 0.0
    pooling: Literal["mean", "attention", "cls", "queries"] = "mean"
    queries: Annotated[int, Field(ge=1, le=1024)] = 12
    query_width: Width = 256
    query_heads: Depth = 8
    pooler: Literal["linear", "tanh"] = "linear"
    attention: Literal["dense", "packed"] = "dense"

    @model_validator(mode="after")
    def _fill_in_and_check(self) -> ConvTransformerConfig:
        for name, value in zip(("width", "depth", "heads", "channels"), SIZES[self.size], strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        assert self.width is not None and self.heads is not None
        problems = head_problems(self.width, self.heads, self.mlp_ratio)
        if self.width % self.position_groups:
            problems.append(
                f"position_groups {self.position_groups} do not divide width {self.width}; choose a divisor of it"
            )
        if self.pooling == "queries" and self.query_width % self.query_heads:
            problems.append(
                f"query_heads {self.query_heads} do not divide query_width {self.query_width}; choose others"
            )
        refuse(problems)
        return self


class HalvingConvolutions(nn.Module):
    """Signal (B, 12, T) -> (B, channels, T // 2^n): n convolutions of two samples and stride 2, GELU behind each.

    No window meets another: token i is made of samples 2^n i to 2^n (i + 1) - 1, but for the statistics of the norm,
    which are those of the record's valid samples.
    """

    def __init__(self, config: ConvTransformerConfig) -> None:
        super().__init__()
        C = config.channels
        assert C is not None
        published = config.norm == "channel"
        self.convolutions = nn.ModuleList()
        for i in range(config.convolutions):
            keeps_voltage = i == 0 and not published
            convolution = nn.Conv1d(LEADS if i == 0 else C, C, 2, 2, bias=keeps_voltage)
            nn.init.kaiming_normal_(convolution.weight)
            if convolution.bias is not None:
                # Statistics of one record alone forget its voltage; beside a bias of the size of a wave (mV) they
                # keep it.
                nn.init.normal_(convolution.bias, std=0.5)
            self.convolutions.append(convolution)
        self.norm = MaskedGroupNorm(C, C) if published else channel_norm(config.norm, C)

    def forward(self, signal: Tensor, valid_samples: Tensor | None) -> Tensor:
        x = signal.to(self.norm.weight.dtype)
        for i, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if i == 0:
                mask = None if valid_samples is None else token_valid(valid_samples, x.shape[-1], 2, 2)[:, None]
                x = self.norm(x, mask)
            x = F.gelu(x)
        return x


class ToTokens(nn.Module):
    """Channels (B, C, N), lead mask (B, 12) -> (B, N, width): LayerNorm, a linear map, and which leads are missing.

    A missing lead adds nothing to the convolutions, as a flat one does; its own learned vector tells the two apart.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, width)
        self.missing = nn.Parameter(torch.randn(LEADS, width) * 0.02)

    def forward(self, features: Tensor, lead_mask: Tensor) -> Tensor:
        tokens = self.linear(self.norm(features.transpose(1, 2)))
        missing = (~lead_mask).to(self.missing.dtype) @ self.missing
        return tokens + missing[:, None].to(tokens.dtype)


class ConvolutionalPositions(nn.Module):
    """Tokens at their places (B, N, D), 0 where there is none -> what to add to each (B, N, D): a grouped convolution
    over its neighbours, and GELU (Mohamed et al. 2019; Baevski et al. 2020).
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(self.convolution.weight, std=(4.0 / (kernel * width)) ** 0.5)
        nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor) -> Tensor:
        around = self.convolution(tokens.transpose(1, 2))[..., : tokens.shape[1]]  # an even kernel makes one too many
        return F.gelu(around).transpose(1, 2)


class FirstToken(nn.Module):
    """Puts a learned token before the others: (B, N, D) -> (B, 1 + N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.rand(1, width))

    def forward(self, tokens: Tensor) -> Tensor:
        first = self.token.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        return torch.cat([first, tokens], dim=1)


class ConvTransformer(EcgEncoder):
    """Halving convolutions -> convolutional positions -> transformer -> one unit vector per record.

    As wav2vec 2.0 (Baevski et al. 2020) in its form for twelve leads (Oh et al. 2022; ECG-FM, McKeen et al. 2025): four
    convolutions of 256 channels, kernel 2, stride 2 (10 s at 500 Hz become 312 tokens of 32 ms), LayerNorm and a linear
    map, positions by a convolution over 128 tokens in 16 groups. Sizes: MELP (Wang et al. 2025) and D-BETA (Pham et al.
    2025) take 8 blocks of width 768, ECG-FM 12, large is 24 of 1024; each with GELU and a four times wider MLP.
    Ours: pre-norm blocks; a first convolution with a bias and statistics over several channels, so that voltage is seen
    (`norm: channel` is the published one); a learned vector per missing lead; no weight norm of the positions.

    A method that hides tokens calls the parts of `forward` itself: `patch_values` (what is to be reconstructed),
    `embed_patches`, `Patches.keep`, `encode_patches`, `pool_tokens`. Positions are added by `encode_patches`, from the
    tokens that it is given: what is hidden does not speak through its neighbours.
    Raises UsageError for a record shorter than a token.
    Legend: B batch, T samples, N tokens, K samples of a token, D width, C channels.
    """

    Config: ClassVar[type[EncoderConfig]] = ConvTransformerConfig

    def __init__(self, config: ConvTransformerConfig, spec: SignalSpec, normalisation: str = "none") -> None:
        super().__init__(spec, normalisation)
        width, depth, heads, channels = config.width, config.depth, config.heads, config.channels
        assert width is not None and depth is not None and heads is not None and channels is not None
        self.patch_samples = 2**config.convolutions
        if spec.samples < self.patch_samples:
            raise UsageError(
                f"encoder.convolutions {config.convolutions} make a token of {self.patch_samples} samples, a record "
                f"has {spec.samples}",
                f"set it to {max(1, spec.samples.bit_length() - 1)} or less",
            )
        self.token_width = width
        self.feature_width = config.query_width if config.pooling == "queries" else width
        self.gradient = config.feature_grad_mult
        self.convolutions = HalvingConvolutions(config)
        self.to_tokens = ToTokens(channels, width)
        self.positions = ConvolutionalPositions(width, config.position_kernel, config.position_groups)
        self.first = FirstToken(width) if config.pooling == "cls" else None
        self.temporal = TemporalEncoder(
            width, depth, heads, config.mlp_ratio, config.dropout, config.drop_path, config.attention
        )
        self.pool: nn.Module | None = None
        if config.pooling == "queries":
            self.pool = QueryPool(width, config.queries, config.query_width, config.query_heads)
        elif self.first is None:
            self.pool = token_pooling(config.pooling, width, heads)
        self.projection, self.pooler = nn.Linear(self.feature_width, config.embedding_dim), config.pooler

    def patch_values(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None) -> Tensor:
        """The normalised samples that each token stands for, float32 (B, N, 12 K), lead after lead, 0 wherever nothing
        was recorded."""
        return record_patches(normalise(signal, lead_mask, valid_samples, self.normalisation), self.patch_samples)

    def embed_patches(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None) -> Patches:
        """Inputs of `forward` -> tokens before positions and transformer, which of them were recorded to their last
        sample, and their times."""
        return self.embed_convolved(self.convolved(signal, lead_mask, valid_samples), lead_mask, valid_samples)

    def convolved(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None) -> Tensor:
        """Inputs of `forward` -> what the convolutions make of each token's samples, (B, C, N)."""
        features = self.convolutions(normalise(signal, lead_mask, valid_samples, self.normalisation), valid_samples)
        if self.gradient == 1.0:
            return features
        fixed = features.detach()
        return fixed + self.gradient * (features - fixed)  # the value itself, part of the gradient

    def embed_convolved(self, features: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None) -> Patches:
        """What `convolved` made -> what `embed_patches` gives."""
        tokens = self.to_tokens(features, lead_mask)
        count, K = tokens.shape[1], self.patch_samples
        recorded = None if valid_samples is None else token_valid(valid_samples, count, K, K)
        return Patches(tokens, recorded, token_seconds(count, K, K, self.sampling_rate, tokens.device))

    def encode_patches(self, patches: Patches) -> Tensor:
        """All patches, or those that were kept -> (B, N, D) after the transformer, with `pooling: cls` (B, 1 + N, D),
        the state of the learned token first.

        Nobody attends to a token whose mask is False, and what comes out at its place means nothing.
        """
        tokens = patches.tokens + self._positions(patches)
        mask, seconds = patches.mask, torch.zeros_like(patches.seconds)  # time is in the tokens: nothing is turned
        if self.first is not None:
            tokens = self.first(tokens)
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
            seconds = F.pad(seconds, (1, 0))
        return self.temporal(tokens, seconds, mask)

    def _positions(self, patches: Patches) -> Tensor:
        """(B, N, D), from the tokens that are there, each at its place of the record."""
        tokens, mask, seconds = patches
        given = tokens if mask is None else torch.where(mask[..., None], tokens, 0.0)
        if seconds.ndim == 1:
            return self.positions(given)
        K = self.patch_samples
        places = (seconds * (self.sampling_rate / K) - 0.5).round().long()[..., None].expand_as(given)
        grid = given.new_zeros(given.shape[0], self.samples // K, given.shape[2]).scatter(1, places, given)
        return self.positions(grid).gather(1, places)

    def pool_tokens(self, encoded: Tensor, token_mask: Tensor) -> Tensor:
        """What `encode_patches` made, and which of its N patches count, bool (B, N) -> features (B, F); 0 for a record
        of which none counts."""
        return self._pooled(encoded, token_mask)[0]

    def _pooled(self, encoded: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features, and what each query saw (B, Q, F); None for another pooling."""
        if self.pool is None:
            return torch.where(token_mask.any(dim=1, keepdim=True), encoded[:, 0], 0.0), None
        pooled: Tensor = self.pool(encoded, token_mask)
        return (pooled, None) if pooled.ndim == 2 else (pooled.mean(dim=1), pooled)

    def project(self, features: Tensor) -> Tensor:
        """Features (B, F), or (B, Q, F) -> float32 (B, embedding_dim), or (B, Q, embedding_dim); their unit vectors are
        the embedding, or the views."""
        projected = self.projection(features).float()
        return torch.tanh(projected) if self.pooler == "tanh" else projected

    def forward(
        self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None, return_tokens: bool = False
    ) -> EncoderOutput:
        """As every encoder; N = T // K tokens."""
        patches = self.embed_patches(signal, lead_mask, valid_samples)
        encoded = self.encode_patches(patches)
        tokens = encoded if self.first is None else encoded[:, 1:]
        present = lead_mask.any(dim=1, keepdim=True).expand(tokens.shape[:2])
        token_mask = present if patches.mask is None else present & patches.mask
        features, seen = self._pooled(encoded, token_mask)
        embedding = F.normalize(self.project(features), dim=-1)
        views = None if seen is None else F.normalize(self.project(seen), dim=-1)
        output = EncoderOutput(embedding, features, valid_samples=valid_samples, views=views)
        return output._replace(tokens=tokens, token_mask=token_mask) if return_tokens else output
