"""Channel attention between lead groups: one weight per group and record.

It is readable as "which view of the heart decided".

Both blocks take group features (B, G, C) and `present` bool (B, G) and give weights (B, G): 0 for a group without any
recorded lead, the others sum to 1 (a record without leads gets all 0). An absent group's features never enter the
weights of the others. Classic squeezing (the mean of a channel) says nothing here, because each group's feature vector
has just been layer-normalised to mean 0; the squeeze is therefore a learned projection. Legend: B batch, G lead groups,
C features of a group.

`gate` puts an age gate on the scores of the groups, before they are weighed against each other.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.pretrain.encoders.blocks.age_film import AgeFilm, Ages


def _over_present(scores: Tensor, present: Tensor) -> Tensor:
    gate = torch.where(present, torch.sigmoid(scores.float()), 0.0)
    return gate / gate.sum(dim=-1, keepdim=True).clamp_min(1e-6)


class GroupAttention(nn.Module):
    """Features (B, G, C), present bool (B, G), ages or None -> weights (B, G), of the `scores` of each block."""

    def __init__(self) -> None:
        super().__init__()
        self.age_gate: AgeFilm | None = None

    def gate(self, groups: int) -> None:
        self.age_gate = AgeFilm(groups)

    def forward(self, features: Tensor, present: Tensor, ages: Ages | None = None) -> Tensor:
        scores = self.scores(features, present)
        if self.age_gate is not None and ages is not None:
            scores = self.age_gate(scores, ages)
        return _over_present(scores, present)

    def scores(self, features: Tensor, present: Tensor) -> Tensor:
        """(B, G), before the sigmoid."""
        raise NotImplementedError


class SqueezeExcitation(GroupAttention):
    """Squeeze-and-excitation over groups (Hu et al. 2018):
    squeeze each group, two fully connected layers over all groups, sigmoid.
    """

    def __init__(self, groups: int, channels: int, squeeze: int = 8) -> None:
        super().__init__()
        hidden = max(groups * squeeze // 4, groups)
        self.squeeze = nn.Linear(channels, squeeze)
        self.reduce = nn.Linear(groups * squeeze, hidden)
        self.excite = nn.Linear(hidden, groups)

    def scores(self, features: Tensor, present: Tensor) -> Tensor:
        squeezed = torch.where(present[..., None], self.squeeze(features), 0.0)
        return self.excite(F.gelu(self.reduce(squeezed.flatten(1))))


class EfficientChannelAttention(GroupAttention):
    """ECA over groups (Wang et al. 2020): a convolution across neighbouring groups, no bottleneck;
    kernel size from log2(G), odd, at least 3.
    """

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        kernel = max(3, int((math.log2(max(groups, 2)) + 1) / 2) | 1)
        self.squeeze = nn.Linear(channels, 1)
        self.across = nn.Conv1d(1, 1, kernel, padding=kernel // 2)

    def scores(self, features: Tensor, present: Tensor) -> Tensor:
        squeezed = torch.where(present[..., None], self.squeeze(features), 0.0)
        return self.across(squeezed.transpose(1, 2)).squeeze(1)


def group_attention(name: str, groups: int, channels: int) -> GroupAttention:
    """`se` or `eca` (config `encoder.group_attention`)."""
    return {"se": SqueezeExcitation, "eca": EfficientChannelAttention}[name](groups, channels)
