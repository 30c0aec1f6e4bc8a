"""MoCo v3 (Chen, Xie & He 2021): a student's view of a record finds a slow teacher's other view of it in the batch.

No reports, no queue: the negatives are the other records of the global batch.

    L = ctr(q_1, k_2) + ctr(q_2, k_1),   ctr(q, k) = 2 tau mean_i -log  e^{q_i.k_i / tau} / sum_j e^{q_i.k_j / tau}
q: encoder, projector and predictor of the student; k: encoder and projector of the teacher, both unit vectors.
    teacher <- m teacher + (1 - m) student after every update, m as in BYOL

Published, for transformers: tau 0.2, m_0 = 0.99 rising to 1, projector of three layers, predictor of two, hidden layers
of 4,096, 256 numbers, normalised at the end of both heads; batch 4,096, AdamW with rate 1.5e-4 x batch / 256 and weight
decay 0.1. Ours: the views, no frozen patch layer, `norm`, whose default looks at one record, and `momentum_steps`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import MethodConfig, Positive, RunConfig, Temperature, Width
from cardialign.pretrain.methods.base import Chance, StepLoss, Tensors, Weights
from cardialign.pretrain.methods.parts.gathering import gathered
from cardialign.pretrain.methods.parts.row_losses import mean_over_batch
from cardialign.pretrain.methods.parts.teacher import follow, rising, teacher_of
from cardialign.pretrain.methods.parts.two_views import VIEWS, Head, HeadsConfig, TwoViews, similarity_of_views


class MocoV3Config(HeadsConfig):
    """hidden_dim and projection_dim: of both heads. momentum: m_0; momentum_steps: after how many steps the teacher
    stands still, null: never.
    """

    name: str = "moco_v3"
    temperature: Temperature = 0.2
    hidden_dim: Width = 4096
    projection_dim: Width = 256
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.99
    momentum_steps: Positive | None = None


class MocoV3(TwoViews):
    """`method.name: moco_v3`."""

    Config: ClassVar[type[MethodConfig]] = MocoV3Config

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, MocoV3Config)
        self.config = method
        h, d = method.hidden_dim, method.projection_dim
        self.projector = Head([config.encoder.embedding_dim, h, h, d], method.norm, last=True)
        self.predictor = Head([d, h, d], method.norm, last=True)
        self.teacher, self.teacher_projector = teacher_of(self.ecg), teacher_of(self.projector)
        chance = 4 * method.temperature * math.log(config.training.global_batch)
        self.chance = Chance(chance, "4 temperature ln B")

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg (b, embedding_dim) of the first view; queries and keys float32 (b, 2, projection_dim), unit
        vectors, one of each view; keys without a gradient.
        """
        seen = [self.seen(inputs, view).embedding for view in VIEWS]
        queries = torch.stack([self.predictor(self.projector(each)).float() for each in seen], dim=1)
        with torch.no_grad():
            known = [self.teacher_projector(self.seen(inputs, view, self.teacher).embedding).float() for view in VIEWS]
        keys = torch.stack(known, dim=1)
        return {"ecg": seen[0], "queries": F.normalize(queries, dim=-1), "keys": F.normalize(keys, dim=-1)}

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss, view_similarity (of a view's query and the other view's key)."""
        queries, own_keys = features["queries"], features["keys"].detach()
        keys, first = gathered(own_keys, group)
        own = torch.arange(first, first + len(queries), device=queries.device)
        tau = self.config.temperature
        entropies = [F.cross_entropy(queries[:, k] @ keys[:, 1 - k].T / tau, own, reduction="none") for k in range(2)]
        of_rows = 2 * tau * (entropies[0] + entropies[1])
        loss = mean_over_batch(torch.stack([of_rows, torch.ones_like(of_rows)], dim=1), group)
        return StepLoss(loss, {"loss": loss.detach()} | similarity_of_views(queries[:, 0], own_keys[:, 1]), self.chance)

    def after_update(self, step: int, weights: Weights) -> None:
        super().after_update(step, weights)
        momentum = rising(self.config.momentum, step, self.config.momentum_steps)
        follow(self.teacher, weights("ecg."), momentum)
        follow(self.teacher_projector, weights("projector."), momentum)
