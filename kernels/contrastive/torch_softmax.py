"""The softmax losses tile by tile: the block functions in plain PyTorch. No b x n matrix is ever held.

With s_ij = exp(log_scale) v_i.t_j and alpha_ij the (constant) weight of a negative:
    r_i = log sum_{j!=i} alpha_ij e^s_ij,   c_j = log sum_{i!=j} alpha_ij e^s_ij        (negatives only)
    L = 1/(2B) sum_i softplus(r_i - s_ii) + softplus(c_i - s_ii)
    G_ij = alpha_ij (e^(s_ij - R_i) + e^(s_ij - C_j)) / (2B)
    G_ii = -(sigmoid(r_i - s_ii) + sigmoid(c_i - s_ii)) / (2B)
with R, C the log-sum-exp including the positive. Keeping the positives apart is what keeps small losses exact: G_ii is
never P - 1.

A block is b rows against n columns (`blocks`); the matching pairs, row i and column tiles.row_offset + i, are left out.
Shapes: b rows, n columns, d width; b or n may be 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cardialign.kernels.contrastive.blocks import BlockGradients, BlockSums, TargetSums
from cardialign.kernels.contrastive.similarity import NegativeTiles
from cardialign.kernels.contrastive.soft_targets import TargetTiles
from cardialign.kernels.contrastive.tiles import spans


def _negative_logits(
    v: Tensor, t: Tensor, scale: Tensor, tiles: NegativeTiles, rows: slice, columns: slice
) -> tuple[Tensor, Tensor | None]:
    """s_ij + log alpha_ij of one tile (-inf where a pair does not count and on the diagonal), and alpha itself."""
    alpha = tiles.alpha(rows, columns)
    diagonal = tiles.diagonal(rows, columns)
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
    """One pass over the tiles of v (b, d) against t (n, d): log-sum-exp of the negatives both ways.

    -inf where there are none. v, t may be bf16 or fp16.
    scale: 0-dim, exp(log_scale); its type (float32, or float64) is that of the accumulation and of the results.
    tiles: tiles.rows and tiles.columns hold features in that type.
    chunk: side of a tile, for implementations that do not choose their own.
    """
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
        alpha_sum += tiles.others(len(v), len(t))
    return BlockSums(rows_lse, columns_lse, alpha_sum)


def block_gradients(
    v: Tensor, t: Tensor, scale: Tensor, tiles: NegativeTiles, row_lse: Tensor, column_lse: Tensor, chunk: int
) -> BlockGradients:
    """Recompute the tiles; H_ij = alpha_ij (e^(s_ij - R_i) + e^(s_ij - C_j)), i != j.

    row_lse (b,), column_lse (n,): with the positives; they and the gradients have the type of `scale`.
    The common factor of the gradient (scale / 2B and that of the loss) is applied by the caller. work / 2B is what the
    negatives give to the gradient of log_scale.
    """
    accumulate = scale.dtype
    d_v = torch.zeros(v.shape, dtype=accumulate, device=v.device)
    d_t = torch.zeros(t.shape, dtype=accumulate, device=t.device)
    work = v.new_zeros((), dtype=torch.float64)
    for rows in spans(v.shape[0], chunk):
        v_tile = v[rows].to(accumulate)
        for columns in spans(t.shape[0], chunk):
            t_tile = t[columns].to(accumulate)
            logits, _ = _negative_logits(v_tile, t_tile, scale, tiles, rows, columns)
            gradient = (logits - row_lse[rows, None]).exp_()
            gradient += logits.sub_(column_lse[None, columns]).exp_()
            d_v[rows].addmm_(gradient, t_tile)
            d_t[columns].addmm_(gradient.T, v_tile)
        work += (v_tile * d_v[rows]).sum(dtype=torch.float64)
    return BlockGradients(d_v, d_t, work * scale)


def target_sums(v: Tensor, t: Tensor, scale: Tensor, tiles: TargetTiles, chunk: int) -> TargetSums:
    """What soft cross-entropy needs of the targets of v (b, d) against t (n, d), beside the log-sums."""
    accumulate = scale.dtype
    row_mass, row_work = (v.new_zeros(v.shape[0], dtype=accumulate) for _ in range(2))
    column_mass, column_work = (v.new_zeros(t.shape[0], dtype=accumulate) for _ in range(2))
    for rows in spans(v.shape[0], chunk):
        v_tile = v[rows].to(accumulate) * scale
        for columns in spans(t.shape[0], chunk):
            target = tiles.off_diagonal(rows, columns, v_tile)
            row_mass[rows] += target.sum(1)
            column_mass[columns] += target.sum(0)
            target *= v_tile @ t[columns].to(accumulate).T
            row_work[rows] += target.sum(1)
            column_work[columns] += target.sum(0)
    return TargetSums(row_mass, row_work, column_mass, column_work)


def subtract_target_gradients(
    d_v: Tensor,
    d_t: Tensor,
    v: Tensor,
    t: Tensor,
    tiles: TargetTiles,
    row_share: Tensor,
    column_share: Tensor,
    chunk: int,
) -> None:
    """d_v (b, d) -= sum_j Y_ij t_j and d_t (n, d) -= sum_i Y_ij v_i in place.

    Y_ij = y_ij (row_share_i + column_share_j), i != j; row_share (b,), column_share (n,).
    """
    accumulate = d_v.dtype
    for rows in spans(v.shape[0], chunk):
        v_tile = v[rows].to(accumulate)
        for columns in spans(t.shape[0], chunk):
            target = tiles.off_diagonal(rows, columns, v_tile)
            target *= row_share[rows, None] + column_share[None, columns]
            d_v[rows].addmm_(target, t[columns].to(accumulate), alpha=-1)
            d_t[columns].addmm_(target.T, v_tile, alpha=-1)
