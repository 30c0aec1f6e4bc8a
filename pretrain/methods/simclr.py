"""SimCLR (Chen et al. 2020): two random views of a record find each other among the views of all other records.

No reports.

For view z_i of a record and its other view z_j, over the 2B views of the global batch:
    L_i = -log  e^{z_i.z_j / tau} / sum_{k != i} e^{z_i.z_k / tau},   averaged over all 2B views (NT-Xent)
It is the weighted InfoNCE of [first; second] against [second; first], in which the view itself is an exact duplicate,
and dropped. The representation is the encoder's embedding; the projector on top of it stays behind, as published.

Published: two layers to 128 numbers, temperature 0.1. Ours: the views (those of the paper are of images), a projector
of twice the embedding's width with GELU and without BatchNorm, AdamW in place of LARS.
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
from cardialign.kernels.contrastive import Execution, NegativeWeights, Similarity, weighted_infonce
from cardialign.pretrain.config import MethodConfig, Positive, RunConfig, Temperature, Width
from cardialign.pretrain.methods.base import Chance, StepLoss, Tensors
from cardialign.pretrain.methods.parts.two_views import VIEWS, TwoViews, TwoViewsConfig


class SimClrConfig(TwoViewsConfig):
    """temperature is fixed, as published; projection_dim is the width of the space of the loss."""

    harmless: ClassVar[tuple[str, ...]] = ("chunk",)

    name: str = "simclr"
    temperature: Temperature = 0.1
    projection_dim: Width = 128
    chunk: Positive = 1024
    scheme: Literal["auto", "gather", "ring"] = "auto"


class SimClr(TwoViews):
    """`method.name: simclr`."""

    Config: ClassVar[type[MethodConfig]] = SimClrConfig

    log_scale: Tensor

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, SimClrConfig)
        self.config = method
        width = config.encoder.embedding_dim
        self.projector = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, method.projection_dim)
        )
        self.register_buffer("log_scale", torch.tensor([-math.log(method.temperature)]), persistent=False)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg (b, embedding_dim), the embedding of the first view;
        projected float32 (b, 2, projection_dim), unit vectors.
        """
        seen = [self.seen(inputs, view).embedding for view in VIEWS]
        dtype = next(self.projector.parameters()).dtype
        projected = [self.projector(each.to(dtype)).float() for each in seen]
        return {"ecg": seen[0], "projected": F.normalize(torch.stack(projected, dim=1), dim=-1)}

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss, effective_negatives (2B - 2 for records that are all different),
        view_similarity (mean cosine of the two views).
        """
        first, second = features["projected"].unbind(dim=1)
        output = weighted_infonce(
            torch.cat([first, second]),
            torch.cat([second, first]),
            self.log_scale,
            Similarity("none", None, inputs["row"].repeat(2)),
            NegativeWeights("none", drop_duplicates=True),
            Execution(group=group, chunk=self.config.chunk, scheme=self.config.scheme),
        )
        metrics = {"loss": output.loss.detach(), "effective_negatives": output.effective_negatives.detach()}
        if len(first):
            metrics["view_similarity"] = (first.detach() * second.detach()).sum(dim=-1).mean()
        chance = Chance(math.log1p(float(output.effective_negatives)), "ln(1 + effective negatives)")
        return StepLoss(output.loss, metrics, chance)
