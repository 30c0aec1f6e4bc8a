"""A transformer that reads an ECG three times at once: its samples, the magnitudes and the phases of its spectrum.

It is the encoder of the Cross Reconstruction Transformer (`methods.crt`).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.kernels.patch_embed import token_seconds, token_valid
from cardialign.pretrain.config import Depth, DropRate, EncoderConfig, Milliseconds, MlpRatio, refuse
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderOutput
from cardialign.pretrain.encoders.blocks.normalise import normalise
from cardialign.pretrain.encoders.blocks.temporal import TemporalEncoder, head_problems
from cardialign.pretrain.encoders.resnet1d import BLOCKS, ResidualBlock, ResNet1dConfig, Stem
from cardialign.pretrain.encoders.vit1d import Patches, PatchProjection, patch_length, record_patches

DOMAINS = ("time", "magnitude", "phase")
SUMMARIES = len(DOMAINS)
"""Tokens that stand before those of the patches, one for each domain."""
FAINT = 1e-5
"""A frequency with less than this share of the largest magnitude of its lead has none, and no phase: what is left of an
offset that was taken away, and rounding, have any phase."""


class TimeSpectrumConfig(EncoderConfig):
    """The published shape is the default, but for `patch_layer`.

    patch_ms: length of a patch of samples; a patch of a spectrum has as many frequencies as that has samples.
    patch_layer: what makes a token of a patch, one for each domain: `linear`, or the published `resnet18`, whose first
    stage has an eighth of the width.
    """

    name: str = "time_spectrum"
    width: Annotated[int, Field(gt=0, le=2**16)] = 128
    depth: Depth = 6
    heads: Depth = 8
    mlp_ratio: MlpRatio = 1.0
    dropout: DropRate = 0.0
    drop_path: DropRate = 0.0
    patch_ms: Milliseconds = 40.0
    patch_layer: Literal["linear", "resnet18"] = "linear"

    @model_validator(mode="after")
    def _fits(self) -> TimeSpectrumConfig:
        problems = head_problems(self.width, self.heads, self.mlp_ratio)
        if self.patch_layer == "resnet18" and self.width % 8:
            problems.append(f"width {self.width} is no multiple of 8, which patch_layer resnet18 asks for; choose one")
        refuse(problems)
        return self


def spectrum(signal: Tensor) -> tuple[Tensor, Tensor]:
    """Samples (..., T) -> magnitude and phase of the frequencies 0 to T // 2 - 1 cycles in T samples, (..., T // 2).

    magnitude  in the unit of the signal; over all T frequencies its mean square is that of the samples (Parseval).
    phase      in half turns, above -1 to 1; 0 where the magnitude is `FAINT`, and so is the magnitude.
    Computed in float64, as what is faint beside the rest would else have the phase of a rounding error; given in the
    type of the signal.
    """
    found = torch.view_as_real(torch.fft.rfft(signal.double(), norm="ortho")[..., : signal.shape[-1] // 2])
    real, imaginary = found.unbind(dim=-1)
    power = real.square() + imaginary.square()
    heard = power > FAINT**2 * power.amax(dim=-1, keepdim=True)
    # Where nothing is heard the root and the angle have no gradient that is a number: of 1 they have.
    magnitude = torch.where(heard, torch.where(heard, power, 1.0).sqrt(), 0.0)
    turns = torch.atan2(torch.where(heard, imaginary, 0.0), torch.where(heard, real, 1.0)) / torch.pi
    phase = torch.where(turns > -1, turns, 1.0)  # of a negative mean, whose sign of zero is the library's
    return magnitude.to(signal.dtype), phase.to(signal.dtype)


class PatchResNet(nn.Module):
    """A residual network of 18 layers over the samples of one patch, and their mean: (B, N, 12 K) -> (B, N, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = ResNet1dConfig(width=width // 8, max_pool=True, pooling="mean")
        self.stem = Stem(narrow)
        self.layers = nn.ModuleList()
        channels = narrow.width
        for stage, count in enumerate(BLOCKS[narrow.depth]):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                self.layers.append(ResidualBlock(channels, narrow.width * 2**stage, stride, narrow.norm, False))
                channels = narrow.width * 2**stage

    def forward(self, values: Tensor, lead_mask: Tensor) -> Tensor:
        leads = len(STANDARD_LEADS)
        each = values.unflatten(2, (leads, -1)).flatten(0, 1)  # (B N, 12, K)
        x, _ = self.stem(each, lead_mask[:, None].expand(-1, values.shape[1], -1).flatten(0, 1), None)
        for layer in self.layers:
            x, _ = layer(x, None)
        return x.mean(dim=2).unflatten(0, values.shape[:2])


class DomainTokens(nn.Module):
    """Patches (B, N, 12 K) of the three domains, after each other -> tokens (B, 3 + N, width), the summaries first."""

    def __init__(self, values: int, config: TimeSpectrumConfig) -> None:
        super().__init__()
        linear = config.patch_layer == "linear"
        self.patches = nn.ModuleList(
            PatchProjection(values, config.width, per_lead=False) if linear else PatchResNet(config.width)
            for _ in DOMAINS
        )
        self.domain = nn.Parameter(torch.randn(len(DOMAINS), config.width) * 0.5)
        self.summary = nn.Parameter(torch.randn(SUMMARIES, config.width) * 0.5)

    def forward(self, values: Tensor, lead_mask: Tensor, counts: tuple[int, int, int]) -> Tensor:
        parts = values.split(list(counts), dim=1)
        made = [layer(part, lead_mask) for layer, part in zip(self.patches, parts, strict=True)]
        summaries = (self.summary + self.domain).to(made[0].dtype).expand(values.shape[0], -1, -1)
        return torch.cat([summaries, *(each + self.domain[at].to(each.dtype) for at, each in enumerate(made))], dim=1)


class TimeSpectrum(EcgEncoder):
    """Patches of the samples, magnitudes and phases, all in one sequence -> transformer -> one unit vector.

    As in the Cross Reconstruction Transformer (Zhang et al. 2023), whose released program was read: patches of 20
    values of all leads, a learned vector for each domain, a summary token for each, whose mean is the feature; half of
    the frequencies; 128 wide, 6 blocks, 8 heads.
    Ours: rotary positions in seconds in place of added ones: a spectrum is laid out as though its frequencies followed
    each other at the sampling rate, and stays at its places for a record of another length; `spectrum`'s units; what is
    said of missing leads; a head is an eighth of the width, where the program has 64 numbers for each; GroupNorm in
    place of BatchNorm in `resnet18`.

    A record that is padded has the spectrum of its samples with zeros behind them. A masked autoencoder calls the parts
    of `forward` itself: `patch_values`, `embed_patches`, `Patches.keep`, `encode_patches`.
    Raises UsageError for a patch that does not fit half the record.
    Legend: B batch, T samples, K samples of a patch, N = n + 2 m tokens: n = T // K of time, m = T // 2 // K of each
    half of the spectrum; D width.
    """

    Config: ClassVar[type[EncoderConfig]] = TimeSpectrumConfig

    def __init__(self, config: TimeSpectrumConfig, spec: SignalSpec, normalisation: str = "none") -> None:
        super().__init__(spec, normalisation)
        self.patch_samples = patch_length(config.patch_ms, spec, spec.samples // 2)
        self.feature_width = self.token_width = config.width
        self.to_tokens = DomainTokens(self.patch_samples * len(STANDARD_LEADS), config)
        self.temporal = TemporalEncoder(
            config.width, config.depth, config.heads, config.mlp_ratio, config.dropout, config.drop_path
        )
        self.projection = nn.Linear(config.width, config.embedding_dim)

    def counts(self, samples: int) -> tuple[int, int, int]:
        """Patches of each domain of a record of so many samples."""
        of_spectrum = samples // 2 // self.patch_samples
        return samples // self.patch_samples, of_spectrum, of_spectrum

    def patch_values(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None) -> Tensor:
        """The normalised samples, magnitudes and phases that each token is made of, float32 or better (B, N, 12 K),
        lead after lead; 0 wherever nothing was recorded.
        """
        signal = normalise(signal, lead_mask, valid_samples, self.normalisation)
        signal = signal.to(torch.promote_types(self.projection.bias.dtype, torch.float32))
        return torch.cat([record_patches(each, self.patch_samples) for each in (signal, *spectrum(signal))], dim=1)

    def embed_patches(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None) -> Patches:
        """Inputs of `forward` -> tokens (B, 3 + N, D) before the transformer, the summaries first, which of them were
        recorded to their last sample, and where they stand.
        """
        T, K = signal.shape[-1], self.patch_samples
        n, m, _ = self.counts(T)
        tokens = self.to_tokens(self.patch_values(signal, lead_mask, valid_samples), lead_mask, (n, m, m))
        time = token_seconds(n, K, K, self.sampling_rate, tokens.device)
        hertz = token_seconds(m, K, K, self.sampling_rate, tokens.device) * (self.samples / T)
        seconds = torch.cat([time.new_zeros(SUMMARIES), time, hertz, hertz])
        if valid_samples is None:
            return Patches(tokens, None, seconds)
        whole = token_valid(valid_samples, n, K, K)
        some = (valid_samples > 0)[:, None]
        summaries = torch.ones_like(some).expand(-1, SUMMARIES)
        return Patches(tokens, torch.cat([summaries, whole, some.expand(-1, 2 * m)], dim=1), seconds)

    def encode_patches(self, patches: Patches) -> Tensor:
        """All patches, or the summaries and those that were kept -> (B, 3 + N, D) after the transformer.

        Nobody attends to a token whose mask is False, and what comes out at its place means nothing.
        """
        encoded: Tensor = self.temporal(patches.tokens, patches.seconds, patches.mask)
        return encoded

    def project(self, features: Tensor) -> Tensor:
        """Features (B, D) -> unit vectors float32 (B, embedding_dim)."""
        return F.normalize(self.projection(features).float(), dim=-1)

    def forward(
        self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None, return_tokens: bool = False
    ) -> EncoderOutput:
        """As every encoder; N tokens, those of time, of magnitudes and of phases."""
        patches = self.embed_patches(signal, lead_mask, valid_samples)
        encoded = self.encode_patches(patches)
        present = lead_mask.any(dim=1, keepdim=True)
        if valid_samples is not None:
            present = present & (valid_samples > 0)[:, None]
        features = torch.where(present, encoded[:, :SUMMARIES].mean(dim=1), 0.0)
        output = EncoderOutput(self.project(features), features, valid_samples=valid_samples)
        if not return_tokens:
            return output
        tokens = encoded[:, SUMMARIES:]
        token_mask = present.expand(tokens.shape[:2])
        if patches.mask is not None:
            token_mask = token_mask & patches.mask[:, SUMMARIES:]
        return output._replace(tokens=tokens, token_mask=token_mask)
