"""Barlow Twins (Zbontar et al. 2021): two views of a record agree in every number, and no two numbers say the same.

No reports, no negatives.

    C = A^T B / batch,   A, B: projections of both views, each column of mean 0 and variance 1 over the batch
    L = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2

Published: three layers of 8,192, lambda 5e-3, batch 2,048, LARS with rate 0.2. Ours: the views, AdamW, and `norm`
between the layers, whose default looks at one record. The statistics of the loss are those of the global batch, however
it is cut; they have no running mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import MethodConfig, RunConfig, Width
from cardialign.pretrain.methods.base import StepLoss, Tensors
from cardialign.pretrain.methods.parts.gathering import summed, total
from cardialign.pretrain.methods.parts.two_views import VIEWS, Head, HeadsConfig, TwoViews, similarity_of_views

EPS = 1e-5
"""Of a variance, as BatchNorm has it."""


class BarlowTwinsConfig(HeadsConfig):
    """redundancy: lambda. projection_dim: of all three layers of the projector, as published."""

    name: str = "barlow_twins"
    projection_dim: Width = 8192
    redundancy: Annotated[float, Field(ge=0, le=1e3)] = 5e-3


class BarlowTwins(TwoViews):
    """`method.name: barlow_twins`."""

    Config: ClassVar[type[MethodConfig]] = BarlowTwinsConfig

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, BarlowTwinsConfig)
        self.redundancy = method.redundancy
        self.projector = Head([config.encoder.embedding_dim, *3 * [method.projection_dim]], method.norm)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg (b, embedding_dim) of the first view; projected float32 (b, 2, projection_dim)."""
        seen = [self.seen(inputs, view).embedding for view in VIEWS]
        return {"ecg": seen[0], "projected": torch.stack([self.projector(each).float() for each in seen], dim=1)}

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss, invariance (the first sum), redundancy (the second, without lambda), view_similarity."""
        both = features["projected"]
        rows = total(torch.tensor(float(len(both)), device=both.device), group)
        # Every sum is of this rank's rows alone (`summed`); a constant near the mean saves them from rounding.
        first, second = (both - total(both.sum(dim=0), group) / rows).unbind(dim=1)
        means = [summed(each.sum(dim=0), group) / rows for each in (first, second)]
        squares = [summed(each.square().sum(dim=0), group) / rows for each in (first, second)]
        spreads = [(square - mean.square() + EPS).sqrt() for square, mean in zip(squares, means, strict=True)]
        cross = summed(first.T @ second, group) / rows - torch.outer(*means)
        cross = cross / torch.outer(*spreads)
        own = cross.diagonal()
        invariance = (1 - own).square().sum()
        redundancy = cross.square().sum() - own.square().sum()
        loss = invariance + self.redundancy * redundancy
        metrics = {"loss": loss.detach(), "invariance": invariance.detach(), "redundancy": redundancy.detach()}
        return StepLoss(loss, metrics | similarity_of_views(*both.unbind(dim=1)))
