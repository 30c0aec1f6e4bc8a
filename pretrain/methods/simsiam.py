"""SimSiam (Chen & He 2021): one view of a record foretells the other, which stands still; no negatives, no teacher.

No reports.

    L = mean over records of  -1/2 cos(h(z_1), sg z_2) - 1/2 cos(h(z_2), sg z_1),   z the projections, h the predictor
It lies between -1 and 1. Nothing but the standing gradient keeps all records from becoming one point: what the alarm
watches is the effective rank.

Published: projector of three layers of 2,048, normalised at its end, too; predictor 2,048 - 512 - 2,048; SGD with rate
0.05 x batch / 256, batch 512. Ours: the views, AdamW, a predictor whose rate falls with the others', and `norm`, whose
default looks at one record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import MethodConfig, RunConfig, Width
from cardialign.pretrain.methods.base import Tensors
from cardialign.pretrain.methods.parts.two_views import VIEWS, Foretelling, Head, HeadsConfig


class SimSiamConfig(HeadsConfig):
    """projection_dim: of the projector's three layers; predictor_dim: of the narrow layer of the predictor."""

    name: str = "simsiam"
    projection_dim: Width = 2048
    predictor_dim: Width = 512


class SimSiam(Foretelling):
    """`method.name: simsiam`."""

    Config: ClassVar[type[MethodConfig]] = SimSiamConfig

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, SimSiamConfig)
        d = method.projection_dim
        self.projector = Head([config.encoder.embedding_dim, d, d, d], method.norm, last=True)
        self.predictor = Head([d, method.predictor_dim, d], method.norm)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg (b, embedding_dim) of the first view; foretold (b, 2), the loss of each record and 1."""
        seen = [self.seen(inputs, view).embedding for view in VIEWS]
        z = [self.projector(each) for each in seen]
        cosines = [
            F.cosine_similarity(self.predictor(z[k]).float(), z[1 - k].detach().float(), dim=-1) for k in range(2)
        ]
        loss = -(cosines[0] + cosines[1]) / 2
        return {"ecg": seen[0], "foretold": torch.stack([loss, torch.ones_like(loss)], dim=1)}
