"""SigLIP (Zhai et al. 2023): every pair of ECG and report is a yes-or-no question of its own;
no softmax, no comparison among negatives.

    L = 1/B sum_ij softplus(l_ij) - y_ij l_ij,   l_ij = e^{log_scale} ecg_i.text_j + bias,   y_ii = 1, else 0
Scale and bias are learnt; they start at log 10 and -10, so that the many negatives do not drown the first steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor, nn

from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.kernels.contrastive import Execution, Similarity, SoftTargets, siglip
from cardialign.pretrain.config import MethodConfig, Positive, RunConfig, Temperature, refuse
from cardialign.pretrain.methods.base import Chance, ReportBank, StepLoss, Tensors
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.logit_scale import LogitScale
from cardialign.pretrain.methods.parts.two_towers import TwoTowers, report_keys, retrieval_top1


class SigLipConfig(MethodConfig):
    """match_duplicates: exactly equal reports count as one another's own (y = 1); off = the published loss."""

    harmless: ClassVar[tuple[str, ...]] = ("chunk",)

    name: str = "siglip"
    temperature: Temperature = 0.1
    temperature_min: Temperature = 0.005
    temperature_max: Temperature = 1.0
    bias: Annotated[float, Field(ge=-1000, le=1000)] = -10.0
    match_duplicates: bool = False
    chunk: Positive = 1024
    scheme: Literal["auto", "gather", "ring"] = "auto"

    @model_validator(mode="after")
    def _ordered(self) -> SigLipConfig:
        low, high = self.temperature_min, self.temperature_max
        if not low <= self.temperature <= high:
            refuse(
                [
                    f"temperature {self.temperature:g} is outside "
                    f"temperature_min..temperature_max ({low:g}..{high:g}); move it inside"
                ]
            )
        return self


class SigLip(TwoTowers):
    """`method.name: siglip`. Inputs besides both towers': report_key int64 (b,)."""

    Config: ClassVar[type[MethodConfig]] = SigLipConfig

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, SigLipConfig)
        self.config = method
        self.logit_scale = LogitScale(method.temperature, method.temperature_min, method.temperature_max, learn=True)
        self.logit_bias = nn.Parameter(torch.tensor([method.bias]))
        self.chance = None if method.match_duplicates else one_logit_for_all(config.training.global_batch)

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        assert bank is not None
        return {**super().inputs(batch, bank, draws), "report_key": report_keys(bank, batch.report)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features ecg and text (b, embedding_dim), log_scale and bias (1,)."""
        return {**super().forward(inputs), "log_scale": self.logit_scale(), "bias": self.logit_bias.float()}

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss, temperature, bias, retrieval_top1 (of this rank's records)."""
        ecg, text, log_scale, bias = (features[name] for name in ("ecg", "text", "log_scale", "bias"))
        similarity = Similarity("none", None, inputs["report_key"])
        targets = SoftTargets("none", match_duplicates=self.config.match_duplicates)
        execution = Execution(group=group, chunk=self.config.chunk, scheme=self.config.scheme)
        loss = siglip(ecg, text, log_scale, bias, similarity, targets, execution)
        metrics = {
            "loss": loss.detach(),
            "temperature": torch.exp(-log_scale.detach()).squeeze(),
            "bias": bias.detach().squeeze(),
        }
        if len(ecg):
            metrics["retrieval_top1"] = retrieval_top1(ecg.detach(), text.detach(), inputs["report_key"])
        return StepLoss(loss, metrics, self.chance)


def one_logit_for_all(B: int) -> Chance:
    """The best that a model reaches which gives every one of B x B pairs the same logit: sigmoid(l) = 1/B."""
    return Chance(math.log(B) + (B - 1) * math.log(B / (B - 1)), "ln B + (B - 1) ln(B / (B - 1))")
