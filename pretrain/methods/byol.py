"""BYOL (Grill et al. 2020): what a student sees of one view foretells what a slow teacher sees of the other.

No reports, no negatives.

    L = mean over records of  [2 - 2 cos(q(z_1), z'_2)] + [2 - 2 cos(q(z_2), z'_1)],   z the student's, z' the teacher's
    teacher <- m teacher + (1 - m) student after every update
    m = 1 - (1 - m_0) (cos(pi k / K) + 1) / 2 at step k of K
The teacher is encoder and projector; the predictor q is the student's alone. The student's encoder leaves.

Published: heads of one hidden layer of 4,096 to 256 numbers, m_0 = 0.996 rising to 1 over the whole training, batch
4,096, LARS. Ours: the views, AdamW, `norm` between the layers, whose default looks at one record, and `momentum_steps`,
K, which is told in the recipe; without it m stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import MethodConfig, Positive, RunConfig, Width
from cardialign.pretrain.methods.base import Tensors, Weights
from cardialign.pretrain.methods.parts.teacher import follow, rising, teacher_of
from cardialign.pretrain.methods.parts.two_views import VIEWS, Foretelling, Head, HeadsConfig


class ByolConfig(HeadsConfig):
    """hidden_dim and projection_dim: of both heads. momentum: m_0; momentum_steps: after how many steps the teacher
    stands still, null: never.
    """

    name: str = "byol"
    hidden_dim: Width = 4096
    projection_dim: Width = 256
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.996
    momentum_steps: Positive | None = None


class Byol(Foretelling):
    """`method.name: byol`."""

    Config: ClassVar[type[MethodConfig]] = ByolConfig

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, ByolConfig)
        self.config = method
        d = method.projection_dim
        self.projector = Head([config.encoder.embedding_dim, method.hidden_dim, d], method.norm)
        self.predictor = Head([d, method.hidden_dim, d], method.norm)
        self.teacher, self.teacher_projector = teacher_of(self.ecg), teacher_of(self.projector)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg (b, embedding_dim) of the first view; foretold (b, 2), the loss of each record, 0 to 8, and
        1; it is 4 where student and teacher have nothing to do with each other.
        """
        seen = [self.seen(inputs, view).embedding for view in VIEWS]
        told = [self.predictor(self.projector(each)).float() for each in seen]
        with torch.no_grad():
            wanted = [self.teacher_projector(self.seen(inputs, view, self.teacher).embedding).float() for view in VIEWS]
        cosines = [F.cosine_similarity(told[k], wanted[1 - k], dim=-1) for k in range(2)]
        loss = 4 - 2 * (cosines[0] + cosines[1])
        return {"ecg": seen[0], "foretold": torch.stack([loss, torch.ones_like(loss)], dim=1)}

    def after_update(self, step: int, weights: Weights) -> None:
        super().after_update(step, weights)
        momentum = rising(self.config.momentum, step, self.config.momentum_steps)
        follow(self.teacher, weights("ecg."), momentum)
        follow(self.teacher_projector, weights("projector."), momentum)
