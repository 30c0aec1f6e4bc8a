"""Keys that count more or less: attention over weighted keys by attention over unweighted ones.

A weight of 1 is a key like any other, a weight of 0 none. Both have a gradient: what another of its kind would change.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-6
"""Added to a weight before its logarithm."""
ROOM = 8
"""Columns more per head: one is needed, libraries take multiples of 8."""


def weigh_keys(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (..., H, Dh) and weight (...) of each key -> operands of width Dh + 8 for any attention of this package.

        o_i = sum_j a_ij v_j,   a_ij = softmax_j(q_i.k_j / sqrt(Dh) + log(w_j + 1e-6))

    stands in the first Dh columns of what attention makes of them. The bias travels as one more column of k against a
    constant of q, so that every backend takes it, packed ones too, and its gradient with it.
    """
    width = q.shape[-1]
    wide = width + ROOM
    bias = torch.log(weight + LEAST)[..., None, None].to(q.dtype).expand(*k.shape[:-1], 1)
    constant = q.new_full((*q.shape[:-1], 1), math.sqrt(wide))
    q = F.pad(torch.cat([q * math.sqrt(wide / width), constant], dim=-1), (0, ROOM - 1))
    k = F.pad(torch.cat([k, bias], dim=-1), (0, ROOM - 1))
    return q, k, F.pad(v, (0, ROOM))
