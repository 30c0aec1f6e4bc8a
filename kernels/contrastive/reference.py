"""The losses written as in their papers, on the full matrix, differentiated by autograd.

What the fast paths must equal; shares no code with them. Any dtype; use float64 as the ground truth. Memory grows with
B x B.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cardialign.kernels.contrastive.similarity import NegativeWeights, Similarity
from cardialign.kernels.contrastive.soft_targets import SoftTargets


def reference_similarity(similarity: Similarity, dtype: torch.dtype) -> Tensor:
    """S (B, B) from features."""
    assert similarity.features is not None
    features = similarity.features.to(dtype)
    s = features @ features.T
    if similarity.kind == "jaccard":
        count = features.sum(1)
        union = count[:, None] + count[None, :] - s
        s = torch.where(union > 0, s / union, torch.zeros_like(s))
    return s


def reference_alpha(
    similarity: Similarity, weights: NegativeWeights, batch: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Weights (B, B) of the negatives; the diagonal is 1."""
    alpha = torch.ones(batch, batch, dtype=dtype, device=device)
    if similarity.kind != "none" and weights.form != "none":
        s = reference_similarity(similarity, dtype)
        if weights.form == "ramp":
            alpha = ((weights.high - s) / (weights.high - weights.low)).clamp(0, 1)
        else:
            alpha = torch.where(
                s < weights.high, torch.exp(-weights.gamma * torch.relu(s - weights.low)), torch.zeros_like(s)
            )
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


def reference_targets(
    similarity: Similarity, targets: SoftTargets, batch: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Labels y (B, B); the diagonal is 1."""
    y = torch.zeros(batch, batch, dtype=dtype, device=device)
    if similarity.kind != "none" and targets.form != "none":
        s = reference_similarity(similarity, dtype)
        if targets.form == "ramp":
            y = targets.weight * ((s - targets.low) / (targets.high - targets.low)).clamp(0, 1)
        elif targets.form == "sigmoid":
            y = targets.weight * torch.sigmoid(targets.slope * (s - targets.threshold)) * s.clamp(min=0)
        else:
            y = s
    key = similarity.duplicate_key
    if targets.match_duplicates and key is not None:
        y = torch.where((key[:, None] == key[None, :]) & (key[:, None] >= 0), torch.ones_like(y), y)
    return torch.where(torch.eye(batch, dtype=torch.bool, device=device), torch.ones_like(y), y).detach()


def reference_soft_target_infonce(
    ecg: Tensor, text: Tensor, log_scale: Tensor, similarity: Similarity, targets: SoftTargets
) -> Tensor:
    """Mean of the cross-entropies of rows and of columns against labels that are normalised along them."""
    y = reference_targets(similarity, targets, len(ecg), ecg.dtype, ecg.device)
    logits = log_scale.exp() * (ecg @ text.T)
    rows = -(y / y.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    columns = -(y / y.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (rows + columns) / 2


def reference_siglip(
    ecg: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor, similarity: Similarity, targets: SoftTargets
) -> Tensor:
    """Binary cross-entropy of every pair, summed over columns, mean over rows."""
    y = reference_targets(similarity, targets, len(ecg), ecg.dtype, ecg.device)
    logits = log_scale.exp() * (ecg @ text.T) + bias
    return -(y * F.logsigmoid(logits) + (1 - y) * F.logsigmoid(-logits)).sum() / len(ecg)


def reference_ets(ecg: Tensor, text: Tensor, aligned: Tensor) -> Tensor:
    """-mean over all B^2 pairs of log sigmoid(y <ecg, text>), y = -1 but +1 for aligned pairs."""
    y = 2 * torch.diag(aligned.to(ecg.dtype)) - 1
    return -F.logsigmoid(y * (ecg @ text.T)).mean()


def reference_false_negative_mitigation(ecg: Tensor, text: Tensor, similarity: Similarity) -> Tensor:
    """|cosine - S| of every pair, summed over columns, mean over rows."""
    target = reference_targets(similarity, SoftTargets("identity"), len(ecg), ecg.dtype, ecg.device)
    return (ecg @ text.T - target).abs().sum() / len(ecg)
