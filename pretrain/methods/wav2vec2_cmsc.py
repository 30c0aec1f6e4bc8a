"""Wav2Vec 2.0 with CMSC and random lead masking (Oh et al. 2022), and with it ECG-FM (McKeen et al. 2025).

No reports. A record is read as its two consecutive halves, each with other leads hidden at random (RLM). Of a token, z
is what the convolutions make of its samples, normalised, and q(z) the words of a learned book that stand for it. Of a
half with stretches of tokens hidden the transformer makes c; every hidden token t is found by its words among those of
`negatives` other hidden tokens n of the half:

    L_t = -log  e^{cos(P c_t, Q q_t) / tau} / (e^{cos(P c_t, Q q_t) / tau} + sum_n e^{cos(P c_t, Q q_n) / tau})
    L   = mean of L_t + diversity (1 - words in use / words) + magnitude mean (convolved)^2 + cmsc CMSC

over the global batch; an n of the same words as t is left out. CMSC is that of CLOCS on what the encoder makes of the
halves with nothing but their leads hidden: a second pass of the transformer.

Published: all settings but the sizes of batches. Ours: a half keeps one lead; a hidden lead's learned vector, which the
encoder has for missing ones; as many tokens are hidden in a half as are drawn, not as many as in the half of the batch
with the fewest; CMSC and negatives know padding, and CMSC the records of all workers, where each released worker knows
its own. The projection on top of the encoder learns nothing: probe the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import DropRate, Fraction, MethodConfig, RunConfig, Temperature, Width, refuse
from cardialign.pretrain.encoders.conv_transformer import ConvTransformer
from cardialign.pretrain.methods.base import Method, ReportBank, StepLoss, Tensors
from cardialign.pretrain.methods.parts.device_draws import KEYS, gumbel_noise, uniform
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.quantiser import GumbelQuantiser, Quantised, perplexity
from cardialign.pretrain.methods.parts.related_views import related_views
from cardialign.pretrain.methods.parts.row_losses import exact, mean_over_batch
from cardialign.pretrain.methods.parts.two_towers import batch_signals
from cardialign.pretrain.methods.parts.views import hide_leads

HALVES = 2
Softness = Annotated[float, Field(ge=1e-3, le=100)]
LossWeight = Annotated[float, Field(ge=0, le=1000)]


class Wav2Vec2CmscConfig(MethodConfig):
    """hidden_leads: chance of each recorded lead of a half to be hidden; 0 = no RLM.
    mask_share, mask_span: so many of a half's tokens would be hidden, in stretches of mask_span, if none overlapped.
    negatives: hidden tokens that each is told from; temperature: tau.
    groups, words: of the book; a token is a word of each group. code_width, target_width: of q, and of P c and Q q.
    softness, last_softness, softness_decay: of the choice of words, at the first step, at the least, and by what it is
    multiplied at each step.
    dropout_input, dropout_features: of tokens before the transformer, and of z before the choice of words.
    diversity, magnitude, cmsc: weights of the other three terms; cmsc 0 leaves the second pass out.
    """

    name: str = "wav2vec2_cmsc"
    hidden_leads: Fraction = 0.5
    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.65
    mask_span: Annotated[int, Field(ge=1, le=10_000)] = 10
    negatives: Annotated[int, Field(ge=1, le=2**16)] = 100
    temperature: Temperature = 0.1
    groups: Annotated[int, Field(ge=1, le=64)] = 2
    words: Annotated[int, Field(ge=2, le=2**16)] = 320
    code_width: Width = 256
    target_width: Width = 256
    softness: Softness = 2.0
    last_softness: Softness = 0.5
    softness_decay: Annotated[float, Field(gt=0, le=1)] = 0.999995
    dropout_input: DropRate = 0.1
    dropout_features: DropRate = 0.1
    diversity: LossWeight = 0.1
    magnitude: LossWeight = 10.0
    cmsc: LossWeight = 1.0
    cmsc_temperature: Temperature = 0.1

    @model_validator(mode="after")
    def _fits(self) -> Wav2Vec2CmscConfig:
        problems = []
        if self.code_width % self.groups:
            problems.append(f"groups {self.groups} do not divide code_width {self.code_width}; choose a divisor of it")
        if self.last_softness > self.softness:
            problems.append(
                f"last_softness {self.last_softness:g} is above softness {self.softness:g}, which it falls to; lower it"
            )
        refuse(problems)
        return self


class Wav2Vec2Cmsc(Method):
    """`method.name: wav2vec2_cmsc`.

    Raises UsageError for another encoder than conv_transformer, and where a half record has fewer than two tokens.
    Legend: b records, B = 2 b halves, half after half of a record, N tokens of a half, C channels, D width, G V words.
    """

    Config: ClassVar[type[MethodConfig]] = Wav2Vec2CmscConfig
    reports: ClassVar[bool] = False

    ecg: ConvTransformer

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, Wav2Vec2CmscConfig)
        if not isinstance(self.ecg, ConvTransformer):
            raise UsageError(
                "method wav2vec2_cmsc hides what convolutions made before a transformer sees it, encoder "
                f"{config.encoder.name} has no such place",
                "set encoder.name to conv_transformer",
            )
        self.config, self.half_samples = method, spec.samples // HALVES
        self.tokens = self.half_samples // self.ecg.patch_samples
        if self.tokens < 2:
            raise UsageError(
                f"half a record of {spec.samples} samples has {self.tokens} tokens of {self.ecg.patch_samples}",
                "lower encoder.convolutions, or take records at a higher rate",
            )
        D, C = self.ecg.token_width, self.ecg.to_tokens.norm.normalized_shape[0]
        self.mask_token = nn.Parameter(torch.rand(D))
        self.quantiser = GumbelQuantiser(C, method.groups, method.words, method.code_width)
        self.of_code = nn.Linear(method.code_width, method.target_width)
        self.of_state = nn.Linear(D, method.target_width)
        self.drop_input, self.drop_features = nn.Dropout(method.dropout_input), nn.Dropout(method.dropout_features)

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """The signal as every encoder reads it, patient int64 (b,), and of each half

        leads     bool (b, 2, 12), those that are shown.
        recorded  int64 (b, 2), tokens recorded to their last sample, of a record with a lead.
        hidden    bool (b, 2, N), of these; places int64 (b, 2, N): the hidden ones first.
        key       int64 (b, 2), of the noise and the negatives; softness float32 (b,), that of the step.
        """
        assert batch.patient is not None
        config, b = self.config, len(batch.rows)
        draw = draws.uniform("hidden leads", HALVES, batch.lead_mask.shape[1])
        shown = [hide_leads(batch.lead_mask, config.hidden_leads, draw[:, half]) for half in range(HALVES)]
        tokens = np.minimum(batch.valid_samples // HALVES // self.ecg.patch_samples, self.tokens)
        recorded = np.where(batch.lead_mask.any(axis=1), tokens, 0).astype(np.int64)
        hidden = np.zeros((b, HALVES, self.tokens), dtype=bool)
        places = draws.uniform("hidden tokens", HALVES, self.tokens + 1)
        for row, length in enumerate(recorded.tolist()):
            for half in range(HALVES):
                found = hidden_spans(length, config.mask_share, config.mask_span, places[row, half])
                hidden[row, half, :length] = found
        softness = max(config.softness * config.softness_decay**draws.step, config.last_softness)
        return {
            **batch_signals(batch),
            "patient": torch.from_numpy(batch.patient),
            "leads": torch.from_numpy(np.stack(shown, axis=1)),
            "recorded": torch.from_numpy(np.repeat(recorded[:, None], HALVES, axis=1)),
            "hidden": torch.from_numpy(hidden),
            "places": torch.from_numpy((~hidden).argsort(axis=2, kind="stable")),
            "key": torch.from_numpy(draws.integers("words and negatives", 0, KEYS, HALVES)),
            "softness": torch.full((b,), softness),
        }

    def halves(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """signal (B, 12, T // 2), lead mask (B, 12) and, where a record is padded, valid samples (B,)."""
        signal, leads, valid = inputs["signal"], inputs["leads"].flatten(0, 1), inputs.get("valid_samples")
        if valid is None:
            whole = signal[..., : HALVES * self.half_samples].unflatten(-1, (HALVES, self.half_samples))
            return whole.transpose(1, 2).flatten(0, 1), leads, None
        length = (valid // HALVES).clamp_min(1)
        time = torch.arange(self.half_samples, device=signal.device)
        parts = [time + half * length[:, None] for half in range(HALVES)]
        cut = [signal.gather(2, part[:, None].expand(-1, signal.shape[1], -1)) for part in parts]
        return torch.stack(cut, dim=1).flatten(0, 1), leads, length.repeat_interleave(HALVES)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg (b, embedding_dim), of the first half; told and right (b, 2), errors and hidden tokens, and how
        many were found; words float32 (b, G, V) and spoken (b, 1), the shares of words over hidden tokens, and these;
        loud (b, 2), the squares and number of convolved tokens; views (b, 2, D), the unit features of the halves.
        """
        signal, leads, valid = self.halves(inputs)
        b, N = len(inputs["leads"]), self.tokens
        convolved = self.ecg.convolved(signal, leads, valid)  # (B, C, N)
        patches = self.ecg.embed_convolved(convolved, leads, valid)
        recorded = torch.arange(N, device=signal.device) < inputs["recorded"].flatten()[:, None]
        patches = patches._replace(tokens=self.drop_input(patches.tokens))
        hidden = inputs["hidden"].flatten(0, 1)[..., None]
        masked = torch.where(hidden, self.mask_token.to(patches.tokens.dtype), patches.tokens)
        states = self.ecg.encode_patches(patches._replace(tokens=masked))
        seen = self.ecg.encode_patches(patches) if self.config.cmsc else states
        features = self.ecg.pool_tokens(seen, recorded)
        told, right, words = self._found(states[:, -N:], convolved, inputs)
        squares = (exact(convolved).square().mean(dim=1) * recorded).sum(dim=1)
        loud = torch.stack([squares, recorded.sum(dim=1).to(squares)], dim=1)
        views = F.normalize(exact(features), dim=-1).unflatten(0, (b, HALVES))
        return {
            "ecg": F.normalize(self.ecg.project(features.unflatten(0, (b, HALVES))[:, 0]), dim=-1),
            "told": told,
            "right": right,
            "words": words,
            "spoken": told[:, 1:].detach(),
            "loud": loud.unflatten(0, (b, HALVES)).sum(dim=1),
            "views": views,
        }

    def _found(self, states: Tensor, convolved: Tensor, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """States (B, N, D) of the halves with hidden tokens -> told (b, 2), right (b, 2), shares of words (b, G, V)."""
        b, config = len(inputs["leads"]), self.config
        hidden, quantised = inputs["hidden"].flatten(0, 1), self.quantised(convolved, inputs)
        target = F.normalize(exact(self.of_code(quantised.said.to(states.dtype))), dim=-1)
        guess = F.normalize(exact(self.of_state(states)), dim=-1)
        scores = guess @ target.transpose(1, 2) / config.temperature  # (B, N, N)
        same = (quantised.chosen[:, :, None] == quantised.chosen[:, None]).all(dim=-1)
        places = self.negatives(inputs)
        others = scores.gather(2, places).masked_fill(same.gather(2, places), -torch.inf)
        true = scores.diagonal(dim1=1, dim2=2)[..., None]
        errors = torch.cat([true, others], dim=2).logsumexp(dim=2) - true[..., 0]
        asked = hidden & (hidden.sum(dim=1, keepdim=True) > 1)
        count = asked.sum(dim=1).to(errors)
        told = torch.stack([torch.where(asked, errors, 0.0).sum(dim=1), count], dim=1)
        best = asked & (true > others).all(dim=2)
        right = torch.stack([best.sum(dim=1).to(errors), count], dim=1)
        shares = (quantised.shares * asked[..., None, None]).sum(dim=1)
        return [each.unflatten(0, (b, HALVES)).sum(dim=1) for each in (told, right, shares)]

    def quantised(self, convolved: Tensor, inputs: Mapping[str, Tensor]) -> Quantised:
        """The words of each token (B, N)."""
        tokens = self.drop_features(self.ecg.to_tokens.norm(convolved.transpose(1, 2)))
        key = inputs["key"].flatten()
        noise = gumbel_noise(key, self.tokens, self.config.groups, self.config.words)
        softness = inputs["softness"].repeat_interleave(HALVES)[:, None].expand(-1, self.tokens)
        return self.quantiser(tokens, noise, softness)

    def negatives(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """int64 (B, N, negatives): for every hidden token other hidden ones of its half, with replacement."""
        hidden, places = inputs["hidden"].flatten(0, 1), inputs["places"].flatten(0, 1)
        others = (hidden.sum(dim=1) - 1).clamp_min(1)[:, None, None]
        drawn = uniform(inputs["key"].flatten() + KEYS, self.tokens, self.config.negatives)
        which = (drawn * others).long()
        own = (hidden.long().cumsum(dim=1) - 1)[..., None]
        which = (which + (which >= own)).clamp_max(self.tokens - 1)
        return places[:, None].expand(-1, self.tokens, -1).gather(2, which)

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss; contrastive, the mean of L_t; accuracy, how often the right words had the highest score;
        words, in use, of G V; magnitude; same_record and same_patient, the means of CMSC.
        """
        config = self.config
        contrastive = mean_over_batch(features["told"], group)
        used = perplexity(features["words"], features["spoken"][:, 0], group)
        magnitude = mean_over_batch(features["loud"], group)
        loss = contrastive + config.diversity * (1 - used / (config.groups * config.words))
        loss = loss + config.magnitude * magnitude
        metrics = {"contrastive": contrastive, "words": used, "magnitude": magnitude}
        if config.cmsc:
            there = inputs["recorded"] > 0
            means, _ = related_views(features["views"], there, inputs["patient"], config.cmsc_temperature, group)
            loss, metrics = loss + config.cmsc * 2 * torch.stack(list(means.values())).sum(), metrics | means
        metrics = {"loss": loss, "accuracy": mean_over_batch(features["right"], group)} | metrics
        return StepLoss(loss, {name: value.detach() for name, value in metrics.items()})


def hidden_spans(length: int, share: float, span: int, draws: np.ndarray) -> np.ndarray:
    """bool (length,): about share * length / span stretches of `span` hidden tokens, which may overlap.

    At least two tokens are hidden and one is shown, where there are three; of fewer none is hidden. draws float (length
    or more, plus 1) in [0, 1): the first rounds the number of stretches, the others choose where they begin.
    """
    hidden = np.zeros(length, dtype=bool)
    if length < 3:
        return hidden
    span = min(span, length - 1)
    count = max(1 if span > 1 else 2, int(share * length / span + draws[0]))
    for start in draws[1 : length - span + 2].argsort(kind="stable")[:count].tolist():
        hidden[start : start + span] = True
    if hidden.all():
        hidden[int(draws[0] * length)] = False
    return hidden
