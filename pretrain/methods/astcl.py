"""ASTCL (Wang et al. 2023), adversarial spatiotemporal contrastive learning: what a student sees of one part of a
record foretells what a slow teacher sees of another part of the same patient, and noise is hidden from an adversary.

No reports, no negatives. A record has two versions, one with noise added and one with noise taken out; and two pairs of
parts: its early and its late half, all leads (time), and its limb and its chest leads, all the time (space). For every
part the student sees one of the versions, drawn for each record, and the teacher the other. With q what the student's
predictor says of part A of record i, z' the teacher's of the other part B of record k, both unit vectors:

    e_ik = 2 - 2 q_iA . z'_kB
    L    = mean of e_ii over time + mean of e_ii over space + patient x mean of e_ik, i != k of one patient
           + mean -log D(version | h)
    teacher <- m teacher + (1 - m) student after every update
D tells the student's h of noisy parts from those of cleaned ones; it learns to, and the encoder gets its gradient times
-adversary (Ganin et al. 2016), so that h comes to say nothing of the noise. Every mean is over all that there is of its
kind in the global batch; a part without a recorded lead or sample is none.

Of the publication its abstract alone could be read: noise enhancement and noise denoising as the two augmentations, a
game between a discriminator and the encoder, spatiotemporal prediction and patient discrimination, positive pairs of
patients alone, predictor and stop-gradient against collapse. Everything else is ours: what noise and denoising are, the
parts, the heads, the teacher (momentum 0 is the student itself), the reversed gradient, and all numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import Fraction, MethodConfig, Milliseconds, Positive, RunConfig, Width
from cardialign.pretrain.encoders.base import EcgEncoder
from cardialign.pretrain.methods.base import Method, ReportBank, StepLoss, Tensors, Weights
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.gathering import gathered
from cardialign.pretrain.methods.parts.row_losses import exact, mean_over_batch
from cardialign.pretrain.methods.parts.teacher import follow, rising, teacher_of
from cardialign.pretrain.methods.parts.two_towers import age_of
from cardialign.pretrain.methods.parts.two_views import Head, HeadsConfig
from cardialign.pretrain.methods.parts.views import ViewsConfig, half_of, view_draws, viewed

NOISY = "noisy"
PARTS = ("early", "late", "limb", "chest")
PAIRS = {"time": ((0, 1), (1, 0)), "space": ((2, 3), (3, 2))}
"""Which parts foretell which: (A, B)."""
LIMB_LEADS = 6
"""The first of the standard leads."""
Version = tuple[Tensor, Tensor, Tensor]


class AstclConfig(HeadsConfig):
    """views: how far the noisy version may go. smooth_ms, baseline_ms: the cleaned one is the mean over the first of
    them around each sample, less that over the second.
    hidden_dim, projection_dim: of projector, predictor and, the first, of the discriminator.
    momentum: m; momentum_steps: after how many steps the teacher stands still, null: never.
    patient: weight of pairs of two records of one patient. adversary: what the encoder gets of the reversed gradient.
    """

    name: str = "astcl"
    views: ViewsConfig = ViewsConfig.model_validate(
        {**ViewsConfig.still(), "wander_mv": 0.3, "mains_mv": 0.1, "noise_mv": 0.1}
    )
    smooth_ms: Milliseconds = 20.0
    baseline_ms: Milliseconds = 1000.0
    hidden_dim: Width = 1024
    projection_dim: Width = 256
    momentum: Fraction = 0.99
    momentum_steps: Positive | None = None
    patient: Annotated[float, Field(ge=0, le=1000)] = 1.0
    adversary: Annotated[float, Field(ge=0, le=1000)] = 0.1


class Reversed(torch.autograd.Function):
    """Identity forward; the gradient times -strength backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.strength * gradient, None


class Astcl(Method):
    """`method.name: astcl`. Legend: b records, B of the global batch, d projection_dim."""

    Config: ClassVar[type[MethodConfig]] = AstclConfig
    reports: ClassVar[bool] = False

    teacher: EcgEncoder

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, AstclConfig)
        self.config = method
        width, hidden, d = config.encoder.embedding_dim, method.hidden_dim, method.projection_dim
        self.projector = Head([width, hidden, d], method.norm)
        self.predictor = Head([d, hidden, d], method.norm)
        self.discriminator = Head([width, hidden, 1], method.norm)
        teacher = teacher_of(self.ecg)
        assert isinstance(teacher, EcgEncoder)
        self.teacher, self.teacher_projector = teacher, teacher_of(self.projector)
        self.smooth, self.baseline = (
            2 * int(ms * spec.sampling_rate / 2000.0) + 1 for ms in (method.smooth_ms, method.baseline_ms)
        )

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """signal float32 (b, 12, T) mV, lead_mask bool (b, 12), valid_samples int64 (b,), age (b,) in years where the
        encoder reads it, what the noisy version is made of, patient int64 (b,), and bool (b, 4) of the parts: noisy,
        which of them the student sees with noise, and there, which of them there are.
        """
        assert batch.patient is not None
        made = view_draws(batch, self.config.views, draws, NOISY, self.ecg.sampling_rate)
        leads, length = made[f"{NOISY} leads"], made[f"{NOISY} length"]
        limb, chest = leads[:, :LIMB_LEADS].any(dim=1), leads[:, LIMB_LEADS:].any(dim=1)
        halves = (limb | chest) & (length >= 2)
        age = {"age": torch.from_numpy(batch.age_years)} if self.ecg.reads_age else {}
        return {
            "signal": torch.from_numpy(batch.signal),
            "lead_mask": torch.from_numpy(batch.lead_mask),
            "valid_samples": torch.from_numpy(batch.valid_samples.astype(np.int64)),
            **age,
            **made,
            "patient": torch.from_numpy(batch.patient),
            NOISY: torch.from_numpy(draws.uniform("noisy parts", len(PARTS)) < 0.5),
            "there": torch.stack([halves, halves, limb & (length >= 1), chest & (length >= 1)], dim=1),
        }

    def versions(self, inputs: Mapping[str, Tensor]) -> tuple[Version, Version]:
        """The noisy and the cleaned version of the records: signal, lead mask, valid samples."""
        signal, valid = inputs["signal"], inputs["valid_samples"]
        clean = denoised(signal, valid, self.smooth, self.baseline)
        return viewed(signal, inputs, NOISY), (clean, inputs["lead_mask"], valid)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg (b, embedding_dim), of the first part that there is; queries and keys float32 (b, 4, d), unit
        vectors, of each part, keys without a gradient; versions and right (b, 2), errors and answers of the
        discriminator, and parts.
        """
        noisy, there = inputs[NOISY], inputs["there"]
        versions = self.versions(inputs)
        seen, keys = [], []
        for at in range(len(PARTS)):
            part = part_of(versions, at, noisy[:, at])
            seen.append(self.ecg(*part, **age_of(inputs)).embedding)
            with torch.no_grad():
                other = self.teacher(*part_of(versions, at, ~noisy[:, at]), **age_of(inputs)).embedding
                keys.append(exact(self.teacher_projector(other)))
        queries = [exact(self.predictor(self.projector(each))) for each in seen]
        embeddings = torch.stack(seen, dim=1)
        asked = Reversed.apply(embeddings, self.config.adversary).flatten(0, 1)
        said = exact(self.discriminator(asked)).unflatten(0, noisy.shape)[..., 0]
        errors = F.binary_cross_entropy_with_logits(said, noisy.to(said), reduction="none")
        count = there.sum(dim=1).to(errors)
        first = there.int().argmax(dim=1)
        return {
            "ecg": embeddings[torch.arange(embeddings.shape[0], device=first.device), first],
            "queries": F.normalize(torch.stack(queries, dim=1), dim=-1),
            "keys": F.normalize(torch.stack(keys, dim=1), dim=-1),
            "versions": torch.stack([torch.where(there, errors, 0.0).sum(dim=1), count], dim=1),
            "right": torch.stack([(((said > 0) == noisy) & there).sum(dim=1).to(errors), count], dim=1),
        }

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss; time, space and patient, the means of e, 2 where student and teacher have nothing to do with
        each other (0 where there is nothing of the kind); versions, what the discriminator loses, ln 2 where nothing
        tells of noise; right, the share of its right answers.
        """
        queries, patient, there = features["queries"], inputs["patient"], inputs["there"]
        keys, start = gathered(features["keys"].detach(), group)
        present = gathered(there.long(), group)[0].bool()
        rows = torch.arange(keys.shape[0], device=keys.device)
        own = rows == rows[start : start + queries.shape[0], None]  # (b, B)
        others = (patient[:, None] == gathered(patient, group)[0]) & ~own
        sums: dict[str, list[Tensor]] = {name: [] for name in (*PAIRS, "patient")}
        for name, pairs in PAIRS.items():
            for a, b in pairs:
                errors = 2 - 2 * queries[:, a] @ keys[:, b].T
                there_both = there[:, a, None] & present[:, b]
                for kind, related in ((name, own), ("patient", others)):
                    wanted = related & there_both
                    found = torch.where(wanted, errors, 0.0).sum(dim=1)
                    sums[kind].append(torch.stack([found, wanted.sum(dim=1).to(found)], dim=1))
        means = {name: mean_over_batch(torch.stack(each).sum(dim=0), group) for name, each in sums.items()}
        versions = mean_over_batch(features["versions"], group)
        loss = means["time"] + means["space"] + self.config.patient * means["patient"] + versions
        metrics = {"loss": loss, **means, "versions": versions, "right": mean_over_batch(features["right"], group)}
        return StepLoss(loss, {name: value.detach() for name, value in metrics.items()})

    def after_update(self, step: int, weights: Weights) -> None:
        super().after_update(step, weights)
        momentum = rising(self.config.momentum, step, self.config.momentum_steps)
        follow(self.teacher, weights("ecg."), momentum)
        follow(self.teacher_projector, weights("projector."), momentum)


def part_of(versions: tuple[Version, Version], at: int, noisy: Tensor) -> Version:
    """A part of the records, of those that are noisy, bool (b,), with noise: signal, lead mask, valid samples."""
    with_noise, without = versions
    signal = torch.where(noisy[:, None, None], with_noise[0], without[0])
    leads = torch.where(noisy[:, None], with_noise[1], without[1])
    valid = torch.where(noisy, with_noise[2], without[2])
    if PARTS[at] in ("early", "late"):
        signal, valid = half_of(signal, valid, at)
        return signal, leads, valid
    limb = torch.arange(leads.shape[1], device=leads.device) < LIMB_LEADS
    return signal, leads & (limb if PARTS[at] == "limb" else ~limb), valid


def denoised(signal: Tensor, valid: Tensor, smooth: int, baseline: int) -> Tensor:
    """The mean of the recorded samples over `smooth` of them around each, less that over `baseline`; both are odd.

    (b, 12, T), 0 behind the last valid sample.
    """
    inside = (torch.arange(signal.shape[-1], device=signal.device) < valid[:, None])[:, None]
    recorded, there = torch.where(inside, signal, 0.0), inside.to(signal.dtype)

    def around(samples: int) -> Tensor:
        count = F.avg_pool1d(there, samples, 1, samples // 2)
        return F.avg_pool1d(recorded, samples, 1, samples // 2) / torch.where(inside, count, 1.0)

    return torch.where(inside, around(smooth) - around(baseline), 0.0)
