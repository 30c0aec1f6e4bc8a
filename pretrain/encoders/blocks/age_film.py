"""Age-gated feature-wise linear modulation (Perez et al. 2018, FiLM): F -> gamma(age) * F + beta(age).

A two-layer MLP of the normalised age gives gamma and beta per channel. Fresh weights are the identity to the last bit:
gamma is 1 and beta 0 until something is learnt. So is an unknown age (NaN), whatever was learnt: what is not known
changes nothing. Legend: B records, D channels, H hidden units.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BIRTH_DAYS, OLDEST_YEARS, DAYS_A_YEAR = 3.0, 100.0, 365.25
HIDDEN = 32
_STEEP = 6.0
"""Slope of the first layer: neighbouring hidden units overlap, and bend within a few tenths of the scale."""


class Ages(NamedTuple):
    """scaled float32 (B,) in 0..1, 0 where it is not known; known bool (B,)."""

    scaled: Tensor
    known: Tensor

    def repeat(self, times: int) -> Ages:
        """Each record `times` times in a row: (B * times,), as lead groups are folded into the batch."""
        return Ages(self.scaled.repeat_interleave(times), self.known.repeat_interleave(times))


def scaled_age(years: Tensor) -> Ages:
    """Ages in years (B,), NaN = unknown, to ln(1 + days / 3) / ln(1 + 100 years / 3 days), at most 1.

    Physiology runs in logarithms of age: a day is 0.03 at birth and nothing later. Birth 0, 1 day 0.03, a week 0.13, 4
    weeks 0.25, a year 0.51, 5 years 0.68, 18 years 0.82, 60 years 0.95, 100 years 1.
    """
    known = torch.isfinite(years)
    days = torch.where(known, years.float(), 0.0).clamp(0.0, OLDEST_YEARS) * DAYS_A_YEAR
    return Ages(torch.log1p(days / BIRTH_DAYS) / math.log1p(OLDEST_YEARS * DAYS_A_YEAR / BIRTH_DAYS), known)


class AgeFilm(nn.Module):
    """gamma(age) * features + beta(age) for features (B, ..., D), with the age of each row of the first axis.

    The hidden layer is gelu(w * age + b) / sqrt(H). Its units bend at evenly spaced ages, the second layer starts at 0:
    nothing is drawn from a random generator, so an encoder with the gate has the same fresh weights as one without.
    """

    def __init__(self, width: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        slopes = [_STEEP * (-1) ** unit for unit in range(hidden)]
        self.hidden_weight = nn.Parameter(torch.tensor(slopes))
        self.hidden_bias = nn.Parameter(torch.tensor([-slope * k / (hidden - 1) for k, slope in enumerate(slopes)]))
        self.weight = nn.Parameter(torch.zeros(2 * width, hidden))
        self.bias = nn.Parameter(torch.zeros(2 * width))

    def forward(self, features: Tensor, ages: Ages) -> Tensor:
        change, shift = self.changes(ages)
        shape = (features.shape[0], *[1] * (features.dim() - 2), self.width)
        return features * (1 + change.to(features.dtype).view(shape)) + shift.to(features.dtype).view(shape)

    def changes(self, ages: Ages) -> tuple[Tensor, Tensor]:
        """gamma - 1 and beta, each (B, D): 0 where the age is not known.

        The age keeps its float32: in bfloat16 the weeks of an infant would be one.
        """
        at = torch.addcmul(self.hidden_bias.float(), ages.scaled[:, None], self.hidden_weight.float()[None])
        found = F.linear((F.gelu(at) / self.hidden**0.5).to(self.weight.dtype), self.weight, self.bias)
        found = torch.where(ages.known[:, None], found, 0.0)
        change, shift = found.chunk(2, dim=-1)
        return change, shift
