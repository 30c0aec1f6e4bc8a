"""Channel attention between lead groups: one weight per group and record.

It is readable as "which view of the heart decided".

Both blocks take group features (B, G, C) and `present` bool (B, G) and give weights (B, G): 0 for a group without any
recorded lead, the others sum to 1 (a record without leads gets all 0). An absent group's features never enter the
weights of the others. Classic squeezing (the mean of a channel) says nothing here, because each group's feature vector
has just been layer-normalised to mean 0; the squeeze is therefore a learned projection. Legend: B batch, G lead groups,
C features of a group.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _over_present(scores: Tensor, present: Tensor) -> Tensor:
    gate = torch.where(present, torch.sigmoid(scores.float()), 0.0)
    return gate / gate.sum(dim=-1, keepdim=True).clamp_min(1e-6)


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation over groups (Hu et al. 2018):
    squeeze each group, two fully connected layers over all groups, sigmoid.
    """

    def __init__(self, groups: int, channels: int, squeeze: int = 8) -> None:
        super().__init__()
        hidden = max(groups * squeeze // 4, groups)
        self.squeeze = nn.Linear(channels, squeeze)
        self.reduce = nn.Linear(groups * squeeze, hidden)
        self.excite = nn.Linear(hidden, groups)

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        squeezed = torch.where(present[..., None], self.squeeze(features), 0.0)
        return _over_present(self.excite(F.gelu(self.reduce(squeezed.flatten(1)))), present)


class EfficientChannelAttention(nn.Module):
    """ECA over groups (Wang et al. 2020): a convolution across neighbouring groups, no bottleneck;
    kernel size from log2(G), odd, at least 3.
    """

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        kernel = max(3, int((math.log2(max(groups, 2)) + 1) / 2) | 1)
        self.squeeze = nn.Linear(channels, 1)
        self.across = nn.Conv1d(1, 1, kernel, padding=kernel // 2)

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        squeezed = torch.where(present[..., None], self.squeeze(features), 0.0)
        return _over_present(self.across(squeezed.transpose(1, 2)).squeeze(1), present)


def group_attention(name: str, groups: int, channels: int) -> nn.Module:
    """`se` or `eca` (config `encoder.group_attention`)."""
    return {"se": SqueezeExcitation, "eca": EfficientChannelAttention}[name](groups, channels)
