"""MERL (Liu et al. 2024): an ECG finds its report, and two dropped-out views of an ECG find each other.

    L = L_CMA + L_UMA,   L_CMA = CE(z_e z_t^T / tau) + CE(z_t z_e^T / tau),   L_UMA = CE(u v^T / tau) + CE(v u^T / tau)
CE is the mean over the global batch of the cross-entropy of each row with its own pair; each term is the sum of its two
directions, not their mean, and tau = 0.07 is fixed. z_e and z_t are the unit vectors of ECG and report. u and v are
those of two linear heads on the pooled, unprojected feature of the ECG, each behind dropout of 10 %: the same record,
two sets of channels.

Ours: the heads of both towers (an attention pooling of one query per head, a report head with a linear path beside its
MLP). The dropout of the views is drawn from (seed, step, row), so that a step is the same on every topology. The
released code never trains its report encoder, whatever its configuration says: that is `text.trainable: frozen`. Its
gradient is 1 / ranks of the true one; here it is the true one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.kernels.contrastive import Execution, infonce
from cardialign.pretrain.config import DropRate, MethodConfig, Positive, RunConfig, Temperature
from cardialign.pretrain.methods.base import Chance, ReportBank, StepLoss, Tensors
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.two_towers import TwoTowers, age_of, report_keys, retrieval_top1

VIEWS = ("first", "second")


class MerlConfig(MethodConfig):
    """temperature: fixed, as published. view_dropout: of the two views of an ECG."""

    harmless: ClassVar[tuple[str, ...]] = ("chunk",)

    name: str = "merl"
    temperature: Temperature = 0.07
    view_dropout: DropRate = 0.1
    chunk: Positive = 1024
    scheme: Literal["auto", "gather", "ring"] = "auto"


class Merl(TwoTowers):
    """`method.name: merl`. Inputs besides both towers': kept bool (b, 2, embedding_dim), what dropout leaves of each
    view, and report_key int64 (b,).
    """

    Config: ClassVar[type[MethodConfig]] = MerlConfig

    log_scale: Tensor

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, MerlConfig)
        self.config, self.width = method, config.encoder.embedding_dim
        self.views = nn.ModuleList(nn.Linear(self.ecg.feature_width, self.width) for _ in VIEWS)
        self.register_buffer("log_scale", torch.tensor([-math.log(method.temperature)]), persistent=False)
        self.chance = Chance(4 * math.log(config.training.global_batch), "4 ln B")

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        assert bank is not None
        kept = [draws.uniform(f"dropout of the {view} view", self.width) >= self.config.view_dropout for view in VIEWS]
        return {
            **super().inputs(batch, bank, draws),
            "kept": torch.stack([torch.from_numpy(each) for each in kept], dim=1),
            "report_key": report_keys(bank, batch.report),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features ecg, text, first and second float32 (b, embedding_dim), unit vectors."""
        ecg = self.ecg(inputs["signal"], inputs["lead_mask"], inputs.get("valid_samples"), **age_of(inputs))
        text = self.text(inputs.get("text_embedding"), inputs.get("token_ids"), inputs.get("token_mask"))
        scale = 1.0 / (1.0 - self.config.view_dropout)
        views = {
            name: F.normalize(head(ecg.features.to(head.weight.dtype)).float() * kept * scale, dim=-1)
            for name, head, kept in zip(VIEWS, self.views, inputs["kept"].unbind(dim=1), strict=True)
        }
        return {"ecg": ecg.embedding, "text": text, **views}

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss, cma_loss, uma_loss, retrieval_top1 (of this rank's records)."""
        execution = Execution(group=group, chunk=self.config.chunk, scheme=self.config.scheme)
        # InfoNCE is the mean of its two directions
        cma = 2 * infonce(features["ecg"], features["text"], self.log_scale, execution)
        uma = 2 * infonce(features["first"], features["second"], self.log_scale, execution)
        loss = cma + uma
        metrics = {"loss": loss.detach(), "cma_loss": cma.detach(), "uma_loss": uma.detach()}
        if len(features["ecg"]):
            ecg, text = features["ecg"].detach(), features["text"].detach()
            metrics["retrieval_top1"] = retrieval_top1(ecg, text, inputs["report_key"])
        return StepLoss(loss, metrics, self.chance)
