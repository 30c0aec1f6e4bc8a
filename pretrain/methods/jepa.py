"""JEPA (Assran et al. 2023; for ECGs Weimann & Conrad 2024, Kim 2024): what is hidden is told as a teacher sees it.

No reports, no negatives, no views, and no sample is drawn again. Stretches of time are hidden in all leads at once. The
student encodes what is shown, and nothing else; a predictor, given where the hidden patches stand, tells what the slow
teacher, which sees the whole record, makes of them:

    L = sum over hidden patches p of |predictor(student(shown))_p - normalised(teacher(record)_p)| / D
        / hidden patches of the global batch
    teacher <- m teacher + (1 - m) student after every update; m rises from m_0 to m_K over K steps

The teacher leaves. Published are two ECG-JEPAs. Weimann & Conrad: patches of all leads, stretches of at least 0.5 s,
15 to 25 % shown, mean absolute error; the defaults are theirs, read in their published configuration. Kim: patches of
single leads of 200 ms (`encoder.patches: lead`), mean squared error for small errors, attention along one lead or one
instant only, which is not here; normalised targets are his, as in Assran et al.

Ours: rotary positions in seconds, no register token; the shown share is drawn per record, not per batch; padded patches
and missing leads are neither shown nor asked for; m rises along a cosine, where Weimann & Conrad take a line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import Depth, Fraction, MethodConfig, Milliseconds, Positive, RunConfig, Width, refuse
from cardialign.pretrain.encoders.blocks.temporal import TemporalEncoder, head_problems
from cardialign.pretrain.encoders.vit1d import Patches, Vit1d
from cardialign.pretrain.methods.base import Exported, Method, ReportBank, StepLoss, Tensors, Weights, part
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.row_losses import mean_over_batch
from cardialign.pretrain.methods.parts.teacher import follow, rising, teacher_of
from cardialign.pretrain.methods.parts.two_towers import batch_signals

LEADS = len(STANDARD_LEADS)
Share = Annotated[float, Field(ge=1e-6, lt=1)]


class JepaConfig(MethodConfig):
    """least_shown, most_shown: share of a record's patches that the student sees, uniform between them.
    block_ms: a hidden stretch is at least that long.
    momentum, last_momentum, momentum_steps: m_0, m_K and K; null: m stays.
    """

    name: str = "jepa"
    least_shown: Share = 0.15
    most_shown: Share = 0.25
    block_ms: Milliseconds = 500.0
    predictor_width: Width = 192
    predictor_depth: Depth = 8
    predictor_heads: Depth = 6
    momentum: Fraction = 0.998
    last_momentum: Fraction = 0.9995
    momentum_steps: Positive | None = None

    @model_validator(mode="after")
    def _fits(self) -> JepaConfig:
        problems = head_problems(self.predictor_width, self.predictor_heads, of="predictor_")
        if self.least_shown > self.most_shown:
            problems.append(f"least_shown {self.least_shown:g} is above most_shown {self.most_shown:g}; exchange them")
        refuse(problems)
        return self


class Jepa(Method):
    """`method.name: jepa`.

    Raises UsageError for another encoder than vit1d, and where nothing would be hidden, or no stretch of `block_ms`.
    Legend: b records, n patches of time, N = n tokens of `record` patches or 12 n of `lead` patches, M places of the
    student's tokens, D width, d predictor_width.
    """

    Config: ClassVar[type[MethodConfig]] = JepaConfig
    reports: ClassVar[bool] = False

    ecg: Vit1d
    teacher: Vit1d

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, JepaConfig)
        if not isinstance(self.ecg, Vit1d):
            raise UsageError(
                f"method jepa leaves patches out of what the student sees, encoder {config.encoder.name} cannot",
                "set encoder.name to vit1d",
            )
        self.config, self.patches = method, spec.samples // self.ecg.patch_samples
        self.block = max(1, round(method.block_ms * spec.sampling_rate / 1000.0 / self.ecg.patch_samples))
        hidden = self.patches - _shown(method.most_shown, self.patches)
        if hidden < self.block:
            raise UsageError(
                f"method.block_ms {method.block_ms:g} asks for {self.block} hidden patches in a row, and of the "
                f"{self.patches} of a record {hidden} are hidden",
                "lower block_ms or most_shown, or shorten encoder.patch_ms",
            )
        d, D = method.predictor_width, self.ecg.token_width
        self.to_predictor = nn.Linear(D, d)
        self.mask_token = nn.Parameter(torch.randn(1, d) * 0.02)
        self.lead = nn.Parameter(torch.randn(LEADS, d) * 0.02) if self.ecg.per_lead else None
        self.predictor = TemporalEncoder(d, method.predictor_depth, method.predictor_heads, 4.0, 0.0, 0.0)
        self.to_tokens = nn.Linear(d, D)
        teacher = teacher_of(self.ecg)
        assert isinstance(teacher, Vit1d)
        self.teacher = teacher

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """The signal as every encoder reads it, and three more:

        shown   bool (b, N), what the student sees; hidden bool (b, N), what is asked for: both recorded to their last
                sample, of a record with a lead, or of a recorded lead.
        kept    int64 (b, M), the places of the shown ones; what is left of M holds places that are not shown.
        """
        recorded = np.minimum(batch.valid_samples // self.ecg.patch_samples, self.patches)
        shares = draws.uniform("shown share")
        draw = draws.uniform("hidden stretches", self.patches, 3)
        hidden = np.zeros((len(batch.rows), self.patches), dtype=bool)
        low, high = self.config.least_shown, self.config.most_shown
        for row, length in enumerate(recorded.tolist()):
            count = length - _shown(low + (high - low) * shares[row], length)
            hidden[row, :length] = hide(length, count, self.block, draw[row])
        there = np.arange(self.patches) < recorded[:, None]
        leads = batch.lead_mask if self.ecg.per_lead else np.asarray(batch.lead_mask.any(axis=1, keepdims=True))
        asked, seen = hidden[:, None] & leads[:, :, None], (there & ~hidden)[:, None] & leads[:, :, None]
        most = _shown(high, self.patches)
        order = (~seen).argsort(axis=2, kind="stable")[:, :, :most]
        places = (order + np.arange(seen.shape[1])[:, None] * self.patches).reshape(len(seen), -1)
        return {
            **batch_signals(batch),
            "shown": torch.from_numpy(seen.reshape(len(seen), -1)),
            "hidden": torch.from_numpy(asked.reshape(len(seen), -1)),
            "kept": torch.from_numpy(places),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg (b, embedding_dim) of what was shown; foretold (b, 2), the errors' sum and number; spread
        (b, 2), of what the teacher says of hidden patches, the squared distances from the record's mean, and number.
        """
        given = inputs["signal"], inputs["lead_mask"], inputs.get("valid_samples")
        everything = self.ecg.embed_patches(*given)
        seen = inputs["shown"].gather(1, inputs["kept"])
        tokens = self.ecg.encode_patches(everything.keep(inputs["kept"])._replace(mask=seen))  # (b, M, D)
        told = self._predict(tokens, inputs, everything.seconds)
        embedding = F.normalize(self.ecg.projection(self.ecg.pool(tokens, seen)).float(), dim=-1)
        with torch.no_grad():
            wanted = self._wanted(self.teacher.embed_patches(*given), inputs["shown"] | inputs["hidden"])
            hidden = inputs["hidden"][..., None].to(wanted.dtype)
            count = hidden.sum(dim=(1, 2))
            mean = (wanted * hidden).sum(dim=1, keepdim=True) / count[:, None, None].clamp_min(1)
            spread = ((wanted - mean).square() * hidden).mean(dim=2).sum(dim=1)
        errors = ((told.to(wanted.dtype) - wanted).abs().mean(dim=2) * hidden[..., 0]).sum(dim=1)
        return {
            "ecg": embedding,
            "foretold": torch.stack([errors, count], dim=1),
            "spread": torch.stack([spread, count], dim=1),
        }

    def _predict(self, tokens: Tensor, inputs: Mapping[str, Tensor], seconds: Tensor) -> Tensor:
        """The student's tokens (b, M, D) at their places among mask tokens -> what is told of every place (b, N, D)."""
        small, shown = self.to_predictor(tokens), inputs["shown"][..., None]
        places = inputs["kept"][..., None].expand_as(small)
        grid = small.new_zeros(len(small), shown.shape[1], small.shape[2]).scatter(1, places, small)
        grid = torch.where(shown, grid, self.mask_token.to(small.dtype))
        if self.lead is not None:
            grid = grid + self.lead.repeat_interleave(self.patches, dim=0).to(small.dtype)
        return self.to_tokens(self.predictor(grid, seconds, inputs["shown"] | inputs["hidden"]))

    def _wanted(self, patches: Patches, recorded: Tensor) -> Tensor:
        """What the teacher makes of the whole record, each token to mean 0 and variance 1, float32 or better."""
        tokens = self.teacher.encode_patches(patches._replace(mask=recorded))
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        return F.layer_norm(tokens, tokens.shape[-1:])

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss; spread, the share of the teacher's variance that lies between the patches of a record: 0 where
        it says one thing of all of them, which is easy to foretell and worth nothing.
        """
        loss = mean_over_batch(features["foretold"], group)
        spread = mean_over_batch(features["spread"], group)
        return StepLoss(loss, {"loss": loss.detach(), "spread": spread.detach()})

    def counts(self, inputs: Mapping[str, Tensor]) -> Tensors:
        hidden = inputs["hidden"].sum(1).float()
        return {"foretold": hidden, "spread": hidden}

    def after_update(self, step: int, weights: Weights) -> None:
        super().after_update(step, weights)
        config = self.config
        momentum = rising(config.momentum, step, config.momentum_steps, config.last_momentum)
        follow(self.teacher, weights("ecg."), momentum)

    @classmethod
    def exported(cls, state: Mapping[str, Tensor]) -> Exported:
        """The teacher, as in Assran et al. and Weimann & Conrad."""
        return super().exported(state)._replace(encoder=part(state, "teacher."))


def _shown(share: float, patches: int) -> int:
    """How many of a record's patches are shown: at least one, where there is one."""
    return min(patches, max(1, math.ceil(share * patches)))


def hide(length: int, count: int, least: int, draws: np.ndarray) -> np.ndarray:
    """bool (length,): `count` patches in stretches of at least `least` of them, or one where `count` is smaller.

    draws float (count or more, 3) in [0, 1). One stretch after another: a random patch that is still shown, a random
    length, a random place in the shown stretch that the patch is of. What is left for too short a stretch, and a shown
    stretch that has no room for one, goes to the hidden stretch beside it.
    """
    hidden, shown, left = np.zeros(length, dtype=bool), [(0, length)], count
    for which, size, place in draws.tolist():
        if not left:
            break
        patch, at = int(which * (length - count + left)), 0
        while patch >= shown[at][1] - shown[at][0]:
            patch -= shown[at][1] - shown[at][0]
            at += 1
        first, end = shown[at]
        rest = left < least
        stretch = min(end - first, left if rest else least + int(size * (left - least + 1)))
        free = end - first - stretch
        start = first + (int(place * (free + 1)) if not rest or count < least else free if not first else 0)
        shown[at : at + 1] = [(a, b) for a, b in ((first, start), (start + stretch, end)) if a < b]
        hidden[start : start + stretch] = True
        left -= stretch
    return hidden
