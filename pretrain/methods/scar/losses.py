"""The terms of SCAR-R that belong to rows. Each gives float32 (b,); the method averages them over the global batch.

Legend: b records, N tokens, D width, E embedding_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def consistency(masked: Tensor, whole: Tensor) -> Tensor:
    """1 - cos(z_mask, z_full) of unit rows (b, E); the whole record's embedding is the target and gets no gradient."""
    return 1.0 - (masked * whole.detach()).sum(dim=-1)


def selection(log_weights: Tensor, words: Tensor, text: Tensor, visible: Tensor, temperature: float) -> Tensor:
    """KL(q || w): the selector's weights against how near each visible token is to the report.

        q_k = softmax over visible k of cos(P h_k, t) / temperature

    log_weights (b, N) of the selector; words (b, N, E), the tokens in the space of the reports; text (b, E) unit rows;
    visible bool (b, N). q gets no gradient. A record without any visible token gives 0.
    """
    unit = F.normalize(words.detach().to(log_weights.dtype), dim=-1)
    cosines = torch.einsum("bne,be->bn", unit, text.detach().to(unit.dtype))
    some = visible.any(dim=1, keepdim=True)
    log_q = torch.log_softmax((cosines / temperature).masked_fill(~(visible | ~some), -torch.inf), dim=1)
    apart = torch.where(visible, log_q - log_weights, 0.0)
    return (torch.where(visible, log_q.exp(), 0.0) * apart).sum(dim=1)


def margin(ecg: Tensor, text: Tensor, mean_text: Tensor) -> Tensor:
    """cos(z, t) less its mean over the batch's reports: z.(t - mean t), of unit rows (b, E); reports get no gradient.

    Linear in every record's embedding: none counts more because its report is easily confused.
    """
    return (ecg * (text - mean_text).detach()).sum(dim=-1)


def budget(relaxed: Tensor, recorded: Tensor, count: Tensor) -> Tensor:
    """(mean of the soft decisions - share removed)^2 over the recorded tokens; 0 where none is. relaxed (b, N)."""
    there = recorded.sum(dim=1).clamp_min(1)
    mean = torch.where(recorded, relaxed, 0.0).sum(dim=1) / there
    return torch.where(recorded.any(dim=1), (mean - count / there).square(), 0.0)


def roughness(relaxed: Tensor, recorded: Tensor, leads: int) -> Tensor:
    """Mean of |m_{l,t+1} - m_{l,t}| over neighbours in time that were both recorded; 0 where there are none."""
    by_lead, there = relaxed.unflatten(1, (leads, -1)), recorded.unflatten(1, (leads, -1))
    both = there[..., 1:] & there[..., :-1]
    steps = torch.where(both, (by_lead[..., 1:] - by_lead[..., :-1]).abs(), 0.0)
    return steps.sum(dim=(1, 2)) / both.sum(dim=(1, 2)).clamp_min(1)
