"""One tile of weighted logits, the device code that forward and backward share.

Both passes must see the same bits where a similarity sits on a threshold of alpha, so there is one function for a tile and nothing else
forms logits. Logits are in base 2: z = log2(alpha) + scale log2(e) q.k, -inf where a pair does not count (the positive, alpha = 0, out of
range). log2(alpha) / scale' is the INITIAL ACCUMULATOR of the feature dot: one register tile instead of two, which is what keeps the
kernels free of spills.

Legend: Q rows and K columns of one tile, m x n, d width, d_s width of the similarity features. Roles swap in the backward pass.
Import this module only where triton is known to be there; `kernels.contrastive_triton` is the door.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot_rows(
    accumulator, Q, K, q_live, k_live, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr
):
    """accumulator (M, N) + Q (M, D) K (N, D)^T, DEPTH columns at a time; Q and K point at the first row, rows not live count as zero."""
    q_row = tl.arange(0, M)[:, None] * D
    k_row = tl.arange(0, N)[:, None] * D
    depth = tl.arange(0, DEPTH)[None, :]
    for start in range(0, D, DEPTH):
        if D % DEPTH == 0:
            q = tl.load(Q + q_row + (start + depth), mask=q_live[:, None], other=0.0)
            k = tl.load(K + k_row + (start + depth), mask=k_live[:, None], other=0.0)
        else:
            q = tl.load(Q + q_row + (start + depth), mask=q_live[:, None] & (start + depth < D), other=0.0)
            k = tl.load(K + k_row + (start + depth), mask=k_live[:, None] & (start + depth < D), other=0.0)
        accumulator = tl.dot(q, tl.trans(k), accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def log_weights(
    EQ, EK, KEYQ, KEYK, q_index, k_index, q_live, k_live, high, slope, low,
    FORM: tl.constexpr, KEYS: tl.constexpr, DS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """log2(alpha) (M, N), -inf where the pair does not count. q_index, k_index: global indices; equal ones are positives.

    FORM 0: every pair counts fully. 1, ramp: slope = 1 / (high - low). 2, exponential: slope = gamma log2(e). A NaN similarity stays NaN.
    """
    dead = (q_index[:, None] == k_index[None, :]) | (q_live[:, None] == 0) | (k_live[None, :] == 0)
    if KEYS:
        q_key = tl.load(KEYQ + tl.arange(0, M), mask=q_live, other=-1)
        k_key = tl.load(KEYK + tl.arange(0, N), mask=k_live, other=-1)
        # Two negative keys are no duplicates of each other: move them apart, then one comparison does.
        dead = dead | (tl.where(q_key < 0, -1, q_key)[:, None] == tl.where(k_key < 0, -2, k_key)[None, :])
    log_alpha = tl.zeros((M, N), dtype=tl.float32)
    if FORM != 0:
        similarity = dot_rows(log_alpha, EQ, EK, q_live, k_live, DS, M, N, DEPTH, PRECISION)
        if FORM == 1:
            alpha = tl.minimum((high - similarity) * slope, 1.0, propagate_nan=tl.PropagateNan.ALL)
            dead = dead | (alpha <= 0.0)
            log_alpha = tl.log2(tl.where(dead, 1.0, alpha))
        else:
            dead = dead | (similarity >= high)
            log_alpha = -slope * tl.maximum(similarity - low, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(dead, float("-inf"), log_alpha)
