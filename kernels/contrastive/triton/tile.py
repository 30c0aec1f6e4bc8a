"""What a tile of pairs knows: the dot of its rows, the similarity of its reports, what weight or target follows.

Device code, shared by all. Both passes must see the same bits where a similarity sits on a threshold, so there is one
function for each of these and nothing else forms them. log2(alpha) / scale' is the INITIAL ACCUMULATOR of the feature
dot (`losses`): one register tile instead of two, which is what keeps the kernels free of spills.

Rows Q stand against columns K; the roles swap in the backward pass. Every kernel of the losses takes (`Operands`)
    Q, K                        (rows, d), (columns, d) embeddings of one type
    EQ, EK                      (rows, d_s), (columns, d_s) similarity features, float16 or float32
    SIZEQ, SIZEK                (rows,), (columns,) float32, sums of multi-hot features; read where JACCARD
    KEYQ, KEYK                  (rows,), (columns,) int64, equal for the same report, negative = none; read where KEYS
    SCALE                       one element, float32: exp(log_scale)
    rows, columns               how many there are
    q_offset, k_offset          global index of the first row, of the first column
    high, slope, low, weight    numbers of the mapping from S to alpha or y (`operands.Mapping`)
    FORM, KEYS, JACCARD         which mapping, whether there are keys, Jaccard instead of cosine similarity
    D, DS                       d and d_s
    M, N                        rows and columns of a tile
    DEPTH, DEPTH_S              features of one step of the dot of embeddings, of the similarity
    PRECISION                   of float32 products, as `tl.dot` names it
Functions of one tile take the pointers at its first row and column. Import this module only where triton is known to be
there; `backend` is the door.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot_rows(
    accumulator,
    Q,
    K,
    q_live,
    k_live,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """accumulator (M, N) + Q (M, D) K (N, D)^T, DEPTH columns at a time; rows that are not live count as zero."""
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
def similarity(
    EQ, EK, SIZEQ, SIZEK, q_live, k_live,
    JACCARD: tl.constexpr, DS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S (M, N), 0 for rows that are not live.

    JACCARD: rows are multi-hot and SIZEQ, SIZEK their sums; two empty rows have S = 0.
    """
    product = dot_rows(tl.zeros((M, N), dtype=tl.float32), EQ, EK, q_live, k_live, DS, M, N, DEPTH, PRECISION)
    if JACCARD:
        q_size = tl.load(SIZEQ + tl.arange(0, M), mask=q_live, other=0.0)
        k_size = tl.load(SIZEK + tl.arange(0, N), mask=k_live, other=0.0)
        union = q_size[:, None] + k_size[None, :] - product
        # Rounded to nearest as in the plain path: 4/5 must be the 0.8 that a threshold says.
        product = tl.div_rn(product, tl.maximum(union, 1.0))
    return product


@triton.jit
def same_report(KEYQ, KEYK, q_live, k_live, M: tl.constexpr, N: tl.constexpr):
    """Whether both reports have the same key, which is not negative (M, N)."""
    q_key = tl.load(KEYQ + tl.arange(0, M), mask=q_live, other=-1)
    k_key = tl.load(KEYK + tl.arange(0, N), mask=k_live, other=-1)
    # Two negative keys are no duplicates of each other: move them apart, then one comparison does.
    return tl.where(q_key < 0, -1, q_key)[:, None] == tl.where(k_key < 0, -2, k_key)[None, :]


@triton.jit
def log_weights(
    EQ, EK, SIZEQ, SIZEK, KEYQ, KEYK, q_index, k_index, q_live, k_live, high, slope, low,
    FORM: tl.constexpr, KEYS: tl.constexpr, JACCARD: tl.constexpr, DS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """log2(alpha) (M, N), -inf where the pair does not count. A NaN similarity stays NaN.

    q_index, k_index    (M,), (N,) global indices; equal ones are positives
    FORM                0: every pair counts fully. 1, ramp: slope = 1 / (high - low). 2, exponential: slope = gamma
                        log2(e)
    """
    dead = (q_index[:, None] == k_index[None, :]) | (q_live[:, None] == 0) | (k_live[None, :] == 0)
    if KEYS:
        dead = dead | same_report(KEYQ, KEYK, q_live, k_live, M, N)
    log_alpha = tl.zeros((M, N), dtype=tl.float32)
    if FORM != 0:
        s = similarity(EQ, EK, SIZEQ, SIZEK, q_live, k_live, JACCARD, DS, M, N, DEPTH, PRECISION)
        if FORM == 1:
            alpha = tl.maximum((high - s) * slope, 0.0, propagate_nan=tl.PropagateNan.ALL)
            alpha = tl.minimum(alpha, 1.0, propagate_nan=tl.PropagateNan.ALL)
            # log2(0) is -inf: nothing of the mask need be kept while the logarithm is computed.
            log_alpha = tl.log2(tl.where(dead, 0.0, alpha))
        else:
            log_alpha = -slope * tl.maximum(s - low, 0.0, propagate_nan=tl.PropagateNan.ALL)
            log_alpha = tl.where(dead | (s >= high), float("-inf"), log_alpha)
    else:
        log_alpha = tl.where(dead, float("-inf"), log_alpha)
    return log_alpha


@triton.jit
def soft_targets(
    EQ, EK, SIZEQ, SIZEK, KEYQ, KEYK, q_live, k_live, slope, low, weight,
    FORM: tl.constexpr, KEYS: tl.constexpr, JACCARD: tl.constexpr, DS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (M, N) as if all pairs were of different records.

    What it says of a matching pair, or of a row that is not live, the caller replaces.
        FORM    0: y = 0. 1, ramp: slope = 1 / (high - low). 2, sigmoid: slope in base 2, low the threshold. 3, identity
    """
    y = tl.zeros((M, N), dtype=tl.float32)
    if FORM != 0:
        y = similarity(EQ, EK, SIZEQ, SIZEK, q_live, k_live, JACCARD, DS, M, N, DEPTH, PRECISION)
        if FORM == 1:
            above = tl.maximum((y - low) * slope, 0.0, propagate_nan=tl.PropagateNan.ALL)
            y = weight * tl.minimum(above, 1.0, propagate_nan=tl.PropagateNan.ALL)
        elif FORM == 2:
            y = weight * tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL) / (1.0 + tl.exp2((low - y) * slope))
    if KEYS:
        y = tl.where(same_report(KEYQ, KEYK, q_live, k_live, M, N), 1.0, y)
    return y
