"""A transformer over heartbeats: every lead's view of every beat is a token.

What a masked or a quantising method hides or names is a beat, not a stretch of time.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.pretrain.config import Depth, DropRate, EncoderConfig, MlpRatio, Width, refuse
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderOutput
from cardialign.pretrain.encoders.blocks.beats import Coarse, coarse, coarse_rate
from cardialign.pretrain.encoders.blocks.heartbeat_tokens import Heartbeats, cut_beats, most_beats, window_samples
from cardialign.pretrain.encoders.blocks.normalise import normalise, recorded_samples
from cardialign.pretrain.encoders.blocks.pooling import token_pooling
from cardialign.pretrain.encoders.blocks.temporal import TemporalEncoder, head_problems

LEADS = len(STANDARD_LEADS)
SIZES: dict[str, tuple[int, int, int, float]] = {"tiny": (96, 4, 4, 4.0), "base": (768, 12, 8, 4 / 3)}
"""Width, depth, heads, and how much wider the MLP is: `base` as HeartLang has it."""
LEAST_RATE, SHORTEST_SECONDS = 60.0, 1.0
"""Hz, and seconds of a record, below which no beat is told from another."""


class BeatTransformerConfig(EncoderConfig):
    """`size` sets width, depth, heads and mlp_ratio; each may be overridden.

    attention: `packed` leaves out places without a beat and missing leads instead of masking them: same result, and at
    usual rates a quarter of the tokens.
    """

    name: str = "beat_transformer"
    size: Literal["tiny", "base"] = "tiny"
    width: Width | None = None
    depth: Depth | None = None
    heads: Depth | None = None
    mlp_ratio: MlpRatio | None = None
    dropout: DropRate = 0.0
    drop_path: DropRate = 0.0
    pooling: Literal["mean", "attention", "selector"] = "mean"
    attention: Literal["dense", "packed"] = "dense"

    @model_validator(mode="after")
    def _fill_in_and_check(self) -> BeatTransformerConfig:
        for name, value in zip(("width", "depth", "heads", "mlp_ratio"), SIZES[self.size], strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        assert self.width is not None and self.heads is not None and self.mlp_ratio is not None
        refuse(head_problems(self.width, self.heads, self.mlp_ratio))
        return self


class BeatMap(nn.Module):
    """One linear map of every beat: values (B, N, W) -> tokens (B, N, D)."""

    def __init__(self, window: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, window) * 2.0 * window**-0.5)
        # Beside a bias of about the size of a projected wave (mV) its voltage outlives the LayerNorm (as `vit1d`).
        self.bias = nn.Parameter(torch.randn(width) * 0.5)

    def forward(self, values: Tensor) -> Tensor:
        return F.linear(values.to(self.weight.dtype), self.weight, self.bias)


class BeatPlaces(nn.Module):
    """What says of which lead a beat is and in which second of the record: a learned vector for each."""

    def __init__(self, width: int, seconds: int) -> None:
        super().__init__()
        self.lead = nn.Parameter(torch.randn(LEADS, width) * 0.02)
        self.second = nn.Parameter(torch.randn(seconds, width) * 0.02)

    def forward(self, tokens: Tensor, beats: Heartbeats) -> Tensor:
        """Tokens (B, N, D) of those beats -> the same, at their places."""
        M, dtype = tokens.shape[1] // LEADS, tokens.dtype
        second = beats.seconds[:, :M].long().clamp_max(len(self.second) - 1)
        at = self.lead.to(dtype)[:, None] + self.second.to(dtype)[second][:, None]  # (B, 12, M, D)
        return tokens + at.flatten(1, 2)


class BeatTransformer(EcgEncoder):
    """Beats of single leads -> pre-norm transformer -> one unit vector per record.

    As the encoder of HeartLang (Jin et al. 2025): windows of 96 samples at 100 Hz around R peaks, zero beyond the
    middle to the next beat, a learned vector per lead and per second. Ours: beats are found in all leads together; as
    many places as beats can be, so that fast rates keep all leads; a beat is mapped by itself, where the publication's
    convolution sees the beats before and after it in the list, the last of another lead included; rotary positions in
    seconds in place of one vector per place in that list; wander is a moving mean, the filter is the shard set's.

    A method that hides or names beats calls the parts of `forward` itself: `cut`, `embed`, `encode`, `pooled`.
    Raises UsageError for records shorter than a beat's window, or of a rate at which beats are not found.
    Legend: B batch, T samples, M places for beats, N = 12 M tokens, W samples of a token, D width.
    """

    Config: ClassVar[type[EncoderConfig]] = BeatTransformerConfig

    def __init__(self, config: BeatTransformerConfig, spec: SignalSpec, normalisation: str = "none") -> None:
        super().__init__(spec, normalisation)
        width, depth, heads, ratio = config.width, config.depth, config.heads, config.mlp_ratio
        assert width is not None and depth is not None and heads is not None and ratio is not None
        rate = coarse_rate(spec.sampling_rate)
        self.window, self.most = window_samples(spec.sampling_rate), most_beats(spec.samples, spec.sampling_rate)
        if rate < LEAST_RATE or spec.samples / spec.sampling_rate < SHORTEST_SECONDS:
            raise UsageError(
                f"encoder beat_transformer reads heartbeats, and records of {spec.samples} samples at "
                f"{spec.sampling_rate:g} Hz are too short or too coarse for them",
                f"take at least {SHORTEST_SECONDS:g} s at {LEAST_RATE:g} Hz, or another encoder",
            )
        self.feature_width = self.token_width = width
        self.of_beat = BeatMap(self.window, width)
        self.seconds = math.ceil(spec.samples / spec.sampling_rate)
        self.places = BeatPlaces(width, self.seconds)
        self.temporal = TemporalEncoder(width, depth, heads, ratio, config.dropout, config.drop_path, config.attention)
        self.pool = token_pooling(config.pooling, width, heads)
        self.projection = nn.Linear(width, config.embedding_dim)

    def cut(self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None) -> Heartbeats:
        """Inputs of `forward` -> the beats of every lead; beats are found in mV, values are normalised."""
        recorded = recorded_samples(signal, lead_mask, valid_samples)
        beats_in = record = coarse(signal, recorded, self.sampling_rate)
        if self.normalisation != "none":
            scaled = normalise(signal, lead_mask, valid_samples, self.normalisation)
            record = Coarse(coarse(scaled, recorded, self.sampling_rate).signal, record.recorded, record.rate)
        return cut_beats(record, beats_in, self.most, self.window)

    def embed(self, beats: Heartbeats) -> Tensor:
        """Tokens (B, N, D), each of its beat alone: they do not know of any place."""
        tokens: Tensor = self.of_beat(beats.values)
        return tokens

    def encode(self, tokens: Tensor, beats: Heartbeats) -> Tensor:
        """Tokens (B, N, D) at the places of those beats -> (B, N, D) after the transformer.

        Nobody attends to a token whose mask is False, and what comes out at its place means nothing.
        """
        return self.temporal(self.places(tokens, beats), beats.seconds, beats.mask)

    def pooled(self, encoded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What `encode` made, and which tokens count -> features (B, D) and the embedding; 0 where none counts."""
        features = self.pool(encoded, mask)
        return features, F.normalize(self.projection(features).float(), dim=-1)

    def forward(
        self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None = None, return_tokens: bool = False
    ) -> EncoderOutput:
        """As every encoder; N = 12 M tokens, lead after lead, of which as many are valid as there are beats."""
        beats = self.cut(signal, lead_mask, valid_samples)
        tokens = self.encode(self.embed(beats), beats)
        features, embedding = self.pooled(tokens, beats.mask)
        output = EncoderOutput(embedding, features, valid_samples=valid_samples)
        return output._replace(tokens=tokens, token_mask=beats.mask) if return_tokens else output
