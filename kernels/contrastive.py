"""Contrastive losses over the global batch: the public types and the one place that chooses an implementation."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from kernels.contrastive_chunked import chunked_infonce
from kernels.contrastive_ranks import ranked_infonce
from kernels.similarity import NegativeWeights, Similarity

__all__ = ["ContrastiveOutput", "NegativeWeights", "Similarity", "weighted_infonce"]


@dataclass(frozen=True)
class ContrastiveOutput:
    """loss (0-dim, differentiable) and effective_negatives (0-dim, mean over the global batch of sum_{j!=i} alpha_ij, detached)."""

    loss: Tensor
    effective_negatives: Tensor


def weighted_infonce(
    ecg: Tensor,
    text: Tensor,
    log_scale: Tensor,
    similarity: Similarity,
    weights: NegativeWeights,
    *,
    group: dist.ProcessGroup | None = None,
    chunk: int = 1024,
) -> ContrastiveOutput:
    """DiagSim-weighted InfoNCE, both directions averaged, mean over the global batch; the same value on every rank.

    ecg, text: (b, d) L2-normalised, row i of one matching row i of the other; b may differ between ranks and be 0.
    log_scale: one element, the logarithm of the inverse temperature. similarity: of the local reports. chunk: side of a tile.
    group: None is the default group where torch.distributed is initialised, a single process otherwise.
    Gradients are exactly d(global loss)/d(local tensor), not multiplied by the world size; d log_scale is the global gradient on every
    rank. bf16 and fp16 operands are accumulated in float32, float64 stays float64. Peak extra memory: chunk x chunk tiles, plus over
    ranks the gathered text and similarity features. Raises ValueError for operands that do not fit together.
    Source: DiagSim weighting of negatives; negatives-only log-sum-exp as in contrastive_chunked.
    """
    _check(ecg, text, log_scale, similarity, chunk)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1:
        return ContrastiveOutput(*ranked_infonce(ecg, text, log_scale, similarity, weights, chunk, group))
    if ecg.shape[0] == 0:
        raise ValueError("the batch is empty; pass at least one pair")
    return ContrastiveOutput(*chunked_infonce(ecg, text, log_scale, similarity, weights, chunk))


def _check(ecg: Tensor, text: Tensor, log_scale: Tensor, similarity: Similarity, chunk: int) -> None:
    if ecg.ndim != 2 or ecg.shape != text.shape:
        raise ValueError(f"ecg {tuple(ecg.shape)} and text {tuple(text.shape)} must both be (b, d); pass matching embeddings of one width")
    if not (ecg.is_floating_point() and text.is_floating_point()):
        raise ValueError(f"ecg {ecg.dtype} and text {text.dtype} must be floating point; convert them first")
    if log_scale.numel() != 1:
        raise ValueError(f"log_scale has shape {tuple(log_scale.shape)}; pass one element, the log of the inverse temperature")
    if chunk < 1:
        raise ValueError(f"chunk {chunk} is not positive; choose the side of a tile, e.g. 1024")
    similarity.check_rows(ecg.shape[0])
