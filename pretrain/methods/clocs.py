"""CLOCS (Kiyasseh, Zhu & Clifton 2021): halves and leads of a record find each other, and whatever is of one patient.

No reports, nothing random: the views of a record are parts of it.

    cmsc    its two consecutive halves, all leads             across time
    cmlc    each of `leads` alone, the whole time             across space
    cmsmlc  each of `leads` alone in each half                across both
For every two views A and B, h unit vectors, over the records i of the global batch that have both:
    s_ik = e^{h_iA . h_kB / tau} / sum_j e^{h_iA . h_jB / tau},   j: all records that have B
    L_AB = mean_i -log s_ii  +  mean over i != k of one patient of -log s_ik
    L    = mean over A, B of L_AB + L_BA
Every mean is over all that there is of its kind in the global batch, of all A and B together: the same where no record
lacks a view. A lead that was not recorded, or is hidden, is no view: neither asked for nor told from.

Published: tau 0.1; one lead at a time in all three, 5 s at 500 Hz. Ours: an encoder of twelve leads, which sees a lead
alone as a record without the others, and all of them in cmsc. The released program keeps the last A and B alone; this
is the text's formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field, field_validator
from torch import Tensor

from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import MethodConfig, RunConfig, Temperature, refuse
from cardialign.pretrain.encoders.base import EncoderOutput
from cardialign.pretrain.methods.base import Chance, Method, ReportBank, StepLoss, Tensors
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.related_views import related_views
from cardialign.pretrain.methods.parts.two_towers import age_of, batch_signals
from cardialign.pretrain.methods.parts.views import half_of

Lead = Literal["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
Part = tuple[int | None, int | None]
"""Of a record: which half, None the whole time; which lead, None all of them."""


class ClocsConfig(MethodConfig):
    """pairs: which parts find each other; leads: those that stand alone in cmlc and cmsmlc, each an encoding of its own
    (two in cmsmlc) per record.
    """

    name: str = "clocs"
    pairs: Literal["cmsc", "cmlc", "cmsmlc"] = "cmsc"
    leads: Annotated[tuple[Lead, ...], Field(min_length=2)] = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3",
                                                               "V4", "V5", "V6")  # fmt: skip
    temperature: Temperature = 0.1

    @field_validator("leads")
    @classmethod
    def _each_once(cls, leads: tuple[Lead, ...]) -> tuple[Lead, ...]:
        twice = sorted({lead for lead in leads if leads.count(lead) > 1})
        refuse([f"lead {', '.join(twice)} stands there twice; name each once"] if twice else [])
        return leads

    @property
    def parts(self) -> list[Part]:
        """Of a record, the views in their order."""
        halves: list[int | None] = [None] if self.pairs == "cmlc" else [0, 1]
        leads: list[int | None] = [STANDARD_LEADS.index(lead) for lead in self.leads]
        return list(product(halves, [None] if self.pairs == "cmsc" else leads))


class Clocs(Method):
    """`method.name: clocs`. Legend: b records, B of the global batch, V views of a record, d embedding_dim."""

    Config: ClassVar[type[MethodConfig]] = ClocsConfig
    reports: ClassVar[bool] = False

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, ClocsConfig)
        self.temperature, self.parts = method.temperature, method.parts

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """The signal as every encoder reads it, patient int64 (b,), and there bool (b, V): the views of each record."""
        assert batch.patient is not None
        there = []
        for half, lead in self.parts:
            leads = batch.lead_mask.any(axis=1) if lead is None else batch.lead_mask[:, lead]
            there.append(leads & (batch.valid_samples >= (1 if half is None else 2)))
        return {
            **batch_signals(batch, self.ecg.reads_age),
            "patient": torch.from_numpy(batch.patient),
            "there": torch.from_numpy(np.stack(there, axis=1)),
        }

    def seen(self, inputs: Mapping[str, Tensor], part: Part) -> EncoderOutput:
        """What the encoder makes of one part of the records."""
        half, lead = part
        signal, leads, valid = inputs["signal"], inputs["lead_mask"], inputs.get("valid_samples")
        if lead is not None:
            alone = torch.arange(leads.shape[1], device=leads.device) == lead
            leads = leads & alone
        if half is not None:
            whole = torch.full_like(inputs["patient"], signal.shape[-1]) if valid is None else valid
            signal, valid = half_of(signal, whole, half)
        found: EncoderOutput = self.ecg(signal, leads, valid, **age_of(inputs))
        return found

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: views float32 (b, V, d), unit vectors; ecg (b, d), the first of them that the record has."""
        views = torch.stack([self.seen(inputs, part).embedding for part in self.parts], dim=1)
        first = inputs["there"].int().argmax(dim=1)
        return {"ecg": views[torch.arange(len(views), device=views.device), first], "views": views}

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss; same_record and same_patient, its two means (0 where there is nothing of the kind)."""
        means, blind = related_views(features["views"], inputs["there"], inputs["patient"], self.temperature, group)
        loss = 2 * torch.stack(list(means.values())).sum()
        metrics = {"loss": loss.detach()} | {name: mean.detach() for name, mean in means.items()}
        return StepLoss(loss, metrics, Chance(2 * blind, "2 ln B for each kind of pair"))
