"""The DiagSim-weighted InfoNCE written as in the paper, on the full matrix, differentiated by autograd: what the fast paths must equal.

Shares no code with them. Any dtype; use float64 as the ground truth. Memory grows with B x B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.similarity import NegativeWeights, Similarity


def reference_alpha(similarity: Similarity, weights: NegativeWeights, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights (B, B) of the negatives; the diagonal is 1."""
    alpha = torch.ones(batch, batch, dtype=dtype, device=device)
    if similarity.kind != "none" and weights.form != "none":
        assert similarity.features is not None
        features = similarity.features.to(dtype)
        s = features @ features.T
        if similarity.kind == "jaccard":
            count = features.sum(1)
            union = count[:, None] + count[None, :] - s
            s = torch.where(union > 0, s / union, torch.zeros_like(s))
        if weights.form == "ramp":
            alpha = ((weights.high - s) / (weights.high - weights.low)).clamp(0, 1)
        else:
            alpha = torch.where(s < weights.high, torch.exp(-weights.gamma * torch.relu(s - weights.low)), torch.zeros_like(s))
    key = similarity.duplicate_key
    if weights.drop_duplicates and key is not None:
        alpha = torch.where((key[:, None] == key[None, :]) & (key[:, None] >= 0), torch.zeros_like(alpha), alpha)
    return torch.where(torch.eye(batch, dtype=torch.bool, device=device), torch.ones_like(alpha), alpha).detach()


def reference_infonce(
    ecg: Tensor, text: Tensor, log_scale: Tensor, similarity: Similarity, weights: NegativeWeights
) -> tuple[Tensor, Tensor]:
    """Loss (0-dim) and mean effective number of negatives (0-dim) of ecg, text (B, d) and log_scale (1,)."""
    batch = ecg.shape[0]
    alpha = reference_alpha(similarity, weights, batch, ecg.dtype, ecg.device)
    logits = log_scale.exp() * (ecg @ text.T)
    weighted = logits + alpha.log()
    positive = logits.diagonal()
    loss = ((torch.logsumexp(weighted, 1) - positive).mean() + (torch.logsumexp(weighted, 0) - positive).mean()) / 2
    return loss, (alpha.sum() - batch) / batch
