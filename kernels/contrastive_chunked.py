"""DiagSim-weighted InfoNCE tile by tile: no b x B matrix is ever held, in the forward pass or the backward pass.

With s_ij = exp(log_scale) v_i.t_j and alpha_ij the (constant) weight of a negative:
    r_i = log sum_{j!=i} alpha_ij e^s_ij,   c_j = log sum_{i!=j} alpha_ij e^s_ij        (negatives only)
    L = 1/(2B) sum_i softplus(r_i - s_ii) + softplus(c_i - s_ii)
    G_ij = alpha_ij (e^(s_ij - R_i) + e^(s_ij - C_j)) / (2B),   G_ii = -(sigmoid(r_i - s_ii) + sigmoid(c_i - s_ii)) / (2B)
with R, C the log-sum-exp including the positive. Keeping the positives apart is what keeps small losses exact: G_ii is never P - 1.

Shapes: b rows here, B columns (the global batch), d width. Row i of this block is column row_offset + i.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.similarity import NegativeTiles, NegativeWeights, Similarity


class BlockSums(NamedTuple):
    """Negatives-only log-sum-exp of a block along rows (b,) and columns (B,), and the sum of alpha (0-dim)."""

    rows: Tensor
    columns: Tensor
    alpha: Tensor


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 when any operand is float64, float32 otherwise: bf16 and fp16 operands are accumulated in float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def spans(total: int, chunk: int) -> Iterator[slice]:
    """Consecutive slices of at most `chunk` that cover range(total)."""
    for start in range(0, total, chunk):
        yield slice(start, min(start + chunk, total))


def _negative_logits(
    v: Tensor, t: Tensor, scale: Tensor, tiles: NegativeTiles, rows: slice, columns: slice
) -> tuple[Tensor, Tensor | None]:
    """s_ij + log alpha_ij of one tile (-inf where a pair does not count and on the diagonal), and alpha itself."""
    alpha = tiles.alpha(rows, columns)
    diagonal = tiles.row_offset + rows.start - columns.start
    if alpha is not None:
        alpha.diagonal(diagonal).zero_()
    logits = (v * scale) @ t.T
    if alpha is None:
        logits.diagonal(diagonal).fill_(-math.inf)
    else:
        # The mask must act before exp: exp(s - R) of a pair that does not count may overflow, and 0 * inf is NaN.
        logits += alpha.log()
    return logits, alpha


def block_sums(v: Tensor, t: Tensor, scale: Tensor, tiles: NegativeTiles, chunk: int) -> BlockSums:
    """One pass over the tiles of v (b, d) against t (B, d): log-sum-exp of the negatives both ways."""
    accumulate = scale.dtype
    rows_lse = v.new_full((v.shape[0],), -math.inf, dtype=accumulate)
    columns_lse = v.new_full((t.shape[0],), -math.inf, dtype=accumulate)
    alpha_sum = v.new_zeros((), dtype=torch.float64)
    for rows in spans(v.shape[0], chunk):
        v_tile = v[rows].to(accumulate)
        for columns in spans(t.shape[0], chunk):
            logits, alpha = _negative_logits(v_tile, t[columns].to(accumulate), scale, tiles, rows, columns)
            if alpha is not None:
                alpha_sum += alpha.sum()
            rows_lse[rows] = torch.logaddexp(rows_lse[rows], torch.logsumexp(logits, 1))
            columns_lse[columns] = torch.logaddexp(columns_lse[columns], torch.logsumexp(logits, 0))
    if tiles.trivial:
        alpha_sum += v.shape[0] * (t.shape[0] - 1)
    return BlockSums(rows_lse, columns_lse, alpha_sum)


def block_gradients(
    v: Tensor, t: Tensor, scale: Tensor, tiles: NegativeTiles, row_lse: Tensor, column_lse: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Recompute the tiles; return sum_j H_ij t_j (b, d) and sum_i H_ij v_i (B, d), H_ij = alpha (e^(s-R_i) + e^(s-C_j)), i != j.

    row_lse (b,) and column_lse (B,) include the positives. Accumulates in the type of `scale`.
    """
    accumulate = scale.dtype
    d_v = torch.zeros(v.shape, dtype=accumulate, device=v.device)
    d_t = torch.zeros(t.shape, dtype=accumulate, device=t.device)
    for rows in spans(v.shape[0], chunk):
        v_tile = v[rows].to(accumulate)
        for columns in spans(t.shape[0], chunk):
            t_tile = t[columns].to(accumulate)
            logits, _ = _negative_logits(v_tile, t_tile, scale, tiles, rows, columns)
            gradient = (logits - row_lse[rows, None]).exp_()
            gradient += logits.sub_(column_lse[None, columns]).exp_()
            d_v[rows].addmm_(gradient, t_tile)
            d_t[columns].addmm_(gradient.T, v_tile)
    return d_v, d_t


class Positives(NamedTuple):
    """Terms of the matching pairs (b,): their loss, the sums R and C including the positive, and -2B G_ii."""

    loss: Tensor
    row_lse: Tensor
    column_lse: Tensor
    pull: Tensor


def positives(v: Tensor, t: Tensor, scale: Tensor, rows: Tensor, columns: Tensor) -> Positives:
    """Combine the negatives' sums of matching rows and columns with s_ii. Rows without negatives (-inf) give 0, never NaN."""
    s = (v.to(scale.dtype) * t.to(scale.dtype)).sum(1) * scale
    zero = torch.zeros_like(s)
    return Positives(
        # softplus; F.softplus turns linear above 20, which float64 would see
        torch.logaddexp(rows - s, zero) + torch.logaddexp(columns - s, zero),
        torch.logaddexp(rows, s),
        torch.logaddexp(columns, s),
        torch.sigmoid(rows - s) + torch.sigmoid(columns - s),
    )


class ChunkedInfoNCE(torch.autograd.Function):
    """The loss of one process. Saves the inputs and three vectors of length B; the backward pass recomputes the tiles."""

    @staticmethod
    def forward(
        ctx: Any, ecg: Tensor, text: Tensor, log_scale: Tensor, similarity: Similarity, weights: NegativeWeights, chunk: int
    ) -> tuple[Tensor, Tensor]:
        accumulate = accumulation_dtype(ecg, text)
        batch = ecg.shape[0]
        similarity = similarity.with_dtype(accumulate)
        tiles = NegativeTiles(similarity, similarity, weights)
        with torch.autocast(ecg.device.type, enabled=False):
            scale = log_scale.to(accumulate).exp().reshape(())
            sums = block_sums(ecg, text, scale, tiles, chunk)
            pairs = positives(ecg, text, scale, sums.rows, sums.columns)
        ctx.save_for_backward(ecg, text, log_scale, pairs.row_lse, pairs.column_lse, pairs.pull)
        ctx.tiles, ctx.chunk = tiles, chunk
        effective = (sums.alpha / batch).to(torch.float32)
        ctx.mark_non_differentiable(effective)
        return pairs.loss.sum() / (2 * batch), effective

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        ecg, text, log_scale, row_lse, column_lse, pull = ctx.saved_tensors
        with torch.autocast(ecg.device.type, enabled=False):
            scale = log_scale.to(pull.dtype).exp().reshape(())
            d_ecg, d_text = block_gradients(ecg, text, scale, ctx.tiles, row_lse, column_lse, ctx.chunk)
            d_ecg -= pull[:, None] * text
            d_text -= pull[:, None] * ecg
            factor = grad_loss.to(pull.dtype) * scale / (2 * ecg.shape[0])
            d_ecg *= factor
            d_text *= factor
            d_log_scale = (ecg.to(pull.dtype) * d_ecg).sum()
        return d_ecg.to(ecg.dtype), d_text.to(text.dtype), d_log_scale.to(log_scale.dtype).reshape(log_scale.shape), None, None, None


def chunked_infonce(
    ecg: Tensor, text: Tensor, log_scale: Tensor, similarity: Similarity, weights: NegativeWeights, chunk: int
) -> tuple[Tensor, Tensor]:
    """Loss (0-dim) and mean effective number of negatives (0-dim) of one process; ecg, text (B, d), log_scale (1,)."""
    loss, effective = ChunkedInfoNCE.apply(ecg, text, log_scale, similarity, weights, chunk)
    return loss, effective
