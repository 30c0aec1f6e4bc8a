"""The ECG encoder of the main recipe: multi-view cardiac spatial encoding over multi-scale temporal encoders.

The forward pass is one page.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.kernels.patch_embed import token_seconds, token_valid
from cardialign.pretrain.config import Depth, DropRate, EncoderConfig, MlpRatio, Width, refuse
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderOutput
from cardialign.pretrain.encoders.blocks.age_film import AgeFilm, Ages, scaled_age
from cardialign.pretrain.encoders.blocks.beats import (
    BeatView,
    RhythmView,
    averaged_beat,
    coarse,
    find_beats,
    rhythm_statistics,
)
from cardialign.pretrain.encoders.blocks.lead_groups import group_attention
from cardialign.pretrain.encoders.blocks.normalise import normalise, recorded_samples
from cardialign.pretrain.encoders.blocks.patches import PatchEmbedding, PatchScale, samples_of
from cardialign.pretrain.encoders.blocks.pooling import ScalePooling
from cardialign.pretrain.encoders.blocks.temporal import TemporalEncoder, head_problems

LEAD_GROUPS: dict[str, tuple[str, ...]] = {
    "lateral": ("I", "aVL", "V5", "V6", "aVR"),
    "inferior": ("II", "III", "aVF"),
    "septal": ("V1", "V2"),
    "anterior": ("V3", "V4"),
}
"""Leads by the wall of the heart they look at."""


class CardiAlignEncoderConfig(EncoderConfig):
    """`size` sets width, depth and heads; each may be overridden.

    pooling: how the tokens of a scale become one vector. `max` keeps the strongest answer of each channel, which a mean
    or a weighted mean drowns.
    readout: what a probe reads. `weighted`: layer-normalised views times the weights of their groups. `beside`: the
    views as they were pooled; the weights act on the way to the embedding alone.
    beat, rhythm: further views, of the averaged beat of each lead group and of the RR intervals (`blocks.beats`).
    attention: `packed` leaves out the tokens of padded samples and of missing lead groups instead of masking them: same
    result, less work where much is missing.
    age_gate: the age of the patient modulates what every transformer block gives, the further views, and the weights of
    scales and lead groups (`blocks.age_film`). Where the age is not known the encoder is the one without the gate.
    """

    name: str = "cardialign"
    size: Literal["tiny", "small", "base"] = "small"
    width: Width | None = None
    depth: Depth | None = None
    heads: Depth | None = None
    mlp_ratio: MlpRatio = 4.0
    dropout: DropRate = 0.0
    drop_path: DropRate = 0.0
    lead_groups: dict[str, tuple[str, ...]] = LEAD_GROUPS
    patches: tuple[PatchScale, ...] = (
        PatchScale(kernel_ms=50, stride_ms=50),
        PatchScale(kernel_ms=100, stride_ms=100),
        PatchScale(kernel_ms=200, stride_ms=200),
    )
    pooling: Literal["attention", "resample", "max"] = "attention"
    readout: Literal["weighted", "beside"] = "weighted"
    beat: bool = False
    rhythm: bool = False
    group_attention: Literal["se", "eca"] = "se"
    attention: Literal["dense", "packed"] = "dense"
    age_gate: bool = False

    @model_validator(mode="after")
    def _fill_size_and_check(self) -> CardiAlignEncoderConfig:
        width, depth, heads = {"tiny": (64, 2, 4), "small": (256, 4, 8), "base": (512, 12, 8)}[self.size]
        for name, value in (("width", width), ("depth", depth), ("heads", heads)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        assert self.width is not None and self.heads is not None
        problems = head_problems(self.width, self.heads, self.mlp_ratio)
        if not self.patches:
            problems.append("patches is empty; give at least one scale, e.g. {kernel_ms: 100, stride_ms: 100}")
        seen: list[str] = [lead for leads in self.lead_groups.values() for lead in leads]
        unknown = sorted(set(seen) - set(STANDARD_LEADS))
        if unknown:
            problems.append(
                f"lead_groups names unknown leads {', '.join(unknown)}; known leads: {', '.join(STANDARD_LEADS)}"
            )
        twice = sorted({lead for lead in seen if seen.count(lead) > 1})
        if twice:
            problems.append(f"lead_groups names {', '.join(twice)} more than once; keep each lead in one group")
        if not seen or not all(self.lead_groups.values()):
            problems.append("lead_groups has an empty group; give it leads or remove it")
        refuse(problems)
        return self


class CardiAlignEncoder(EcgEncoder):
    """Twelve leads in mV -> one unit vector per record.

    Sizes (parameters with the default groups and patches at 500 Hz, embedding_dim 256): tiny 0.64 M, small 10.8 M, base
    116 M.
    Raises UsageError for patches that do not fit the record. Legend: B batch, T samples, G lead groups, S scales, N
    tokens, D width.
    """

    Config: ClassVar[type[EncoderConfig]] = CardiAlignEncoderConfig

    membership: Tensor

    def __init__(self, config: CardiAlignEncoderConfig, spec: SignalSpec, normalisation: str = "none") -> None:
        super().__init__(spec, normalisation)
        assert config.width is not None and config.depth is not None and config.heads is not None
        self.packs = config.attention == "packed"
        self.group_names, self.group_leads = tuple(config.lead_groups), dict(config.lead_groups)
        self.scales = [samples_of(scale, spec.sampling_rate, spec.samples) for scale in config.patches]
        groups = [[STANDARD_LEADS.index(lead) for lead in leads] for leads in config.lead_groups.values()]
        features = (len(self.scales) + config.beat) * config.width

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
        self.beside = config.readout == "beside"
        self.feature_norm = nn.Identity() if self.beside else nn.LayerNorm(features)
        self.beat_view = BeatView(groups, spec.sampling_rate, config.width, config.dropout) if config.beat else None
        self.rhythm_view = RhythmView(config.width) if config.rhythm else None
        self.group_attention = group_attention(config.group_attention, len(groups), features)
        self.feature_width, self.token_width = len(groups) * features + config.rhythm * config.width, config.width
        self.projection = nn.Linear(self.feature_width, config.embedding_dim)
        self.reads_age = config.age_gate
        self.age_gate = self._gate(config.width) if config.age_gate else None

        membership = torch.zeros(len(groups), len(STANDARD_LEADS), dtype=torch.bool)
        for g, leads in enumerate(groups):
            membership[g, leads] = True
        self.register_buffer("membership", membership, persistent=False)

    def gated(self) -> CardiAlignEncoder:
        made = copy.deepcopy(self)
        if not made.reads_age:
            made.reads_age, made.age_gate = True, made._gate(made.token_width)
            made.to(made.projection.weight.device)
        return made

    def _gate(self, width: int) -> AgeGate:
        for temporal in self.temporal:
            assert isinstance(temporal, TemporalEncoder)
            temporal.gate()
        self.group_attention.gate(len(self.group_names))
        return AgeGate(width, len(self.scales), self.beat_view is not None, self.rhythm_view is not None)

    def forward(
        self,
        signal: Tensor,
        lead_mask: Tensor,
        valid_samples: Tensor | None = None,
        return_tokens: bool = False,
        age: Tensor | None = None,
    ) -> EncoderOutput:
        """As every encoder; the tokens of a scale stand together, those of a lead group within it:
        N = sum over scales of G * N_s. age float (B,) in years, NaN = not known, for an encoder with `age_gate`.
        """
        B, G = signal.shape[0], len(self.group_names)
        ages = None if age is None or self.age_gate is None else scaled_age(age)
        present = (lead_mask[:, None, :] & self.membership).any(dim=-1)  # (B, G)
        # A missing group has weight 0 below: packed sequences leave its tokens out. A traced graph may not depend on
        # what is missing.
        skip_absent = self.packs and not torch.compiler.is_compiling() and not bool(present.all())

        beat, rhythm = self._measured(signal, lead_mask, valid_samples, ages)
        of_groups = None if ages is None else ages.repeat(G)
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
                temporal(tokens.flatten(0, 1), seconds, mask, ages=of_groups)
            )  # the groups share the encoder: (B * G, N_s, D)
            masks.append(mask)

        pooled = self.pooling(encoded, masks).unflatten(0, (B, G))  # (B, G, S * D)
        if beat is not None:
            pooled = torch.cat([pooled, beat.to(pooled.dtype)], dim=-1)
        if self.age_gate is not None and ages is not None:
            pooled = self.age_gate(pooled, ages)
        views = self.feature_norm(pooled)
        weights = self.group_attention(views, present, ages)  # (B, G)
        weighted = _joined(views * weights[..., None].to(views.dtype), present, rhythm)
        embedding = F.normalize(self.projection(weighted).float(), dim=-1)
        features = _joined(pooled, present, rhythm) if self.beside else weighted
        output = EncoderOutput(embedding, features, valid_samples=valid_samples, group_weights=weights)
        if not return_tokens:
            return output
        return output._replace(
            tokens=torch.cat([t.reshape(B, -1, t.shape[-1]) for t in encoded], dim=1),
            token_mask=torch.cat([self._seen(t, m, present) for t, m in zip(encoded, masks, strict=True)], dim=1),
        )

    def _measured(
        self, signal: Tensor, lead_mask: Tensor, valid_samples: Tensor | None, ages: Ages | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Views of the averaged beat (B, G, D) and of the rhythm (B, D), each None where the recipe has none."""
        if self.beat_view is None and self.rhythm_view is None:
            return None, None
        record = coarse(signal, recorded_samples(signal, lead_mask, valid_samples), self.sampling_rate)
        beats = find_beats(record)
        of_beat = of_rhythm = None
        if self.age_gate is not None and ages is not None:
            of_beat, of_rhythm = partial(self.age_gate.beat, ages=ages), partial(self.age_gate.rhythm, ages=ages)
        beat, rhythm = None, None
        if self.beat_view is not None:
            beat = self.beat_view(*averaged_beat(record, beats), of_beat)
        if self.rhythm_view is not None:
            rhythm = self.rhythm_view(rhythm_statistics(beats, record.rate), of_rhythm)
        return beat, rhythm

    def _seen(self, tokens: Tensor, mask: Tensor | None, present: Tensor) -> Tensor:
        """bool (B, G * N_s): which tokens (B * G, N_s, D) of one scale saw a recorded sample."""
        B, G = present.shape
        there = present[:, :, None].expand(B, G, tokens.shape[1])
        return (there if mask is None else there & mask.unflatten(0, (B, G))).flatten(1)


class AgeGate(nn.Module):
    """What the age changes beside the blocks: the hidden units of the views of the averaged beat and of the rhythm
    before they bend (a normal rate has two limits, both of the age), each where there is one; and the weight of each
    view in its lead group, 1 at first: of the S scales, and of the beat behind them.

    Called with the views (B, G, V * D) of V scales and beat -> the same shape, weighed.
    """

    def __init__(self, width: int, scales: int, beat: bool, rhythm: bool) -> None:
        super().__init__()
        self.width = width
        self.weights = AgeFilm(scales + beat)
        self.beat = AgeFilm(width) if beat else nn.Identity()
        self.rhythm = AgeFilm(4 * width) if rhythm else nn.Identity()

    def forward(self, views: Tensor, ages: Ages) -> Tensor:
        weights = self.weights(views.new_ones(views.shape[0], self.weights.width), ages)
        return views * weights.repeat_interleave(self.width, dim=1)[:, None]


def _joined(views: Tensor, present: Tensor, rhythm: Tensor | None) -> Tensor:
    """Views of the lead groups (B, G, C), and of the rhythm (B, D), side by side; 0 for what no lead has recorded."""
    rows = torch.where(present[..., None], views, 0.0).flatten(1)
    if rhythm is None:
        return rows
    return torch.cat([rows, torch.where(present.any(dim=1, keepdim=True), rhythm.to(rows.dtype), 0.0)], dim=1)
