"""The losses as functions of one tile, f(s_ij, S_ij): value, slope and work (slope times dot) of every pair. Device
code.

A new loss is one more branch here.
    SOFTMAX   slope H_ij = alpha_ij (e^(s_ij - R_i) + e^(s_ij - C_j)); side: the log sums R of rows, C of columns, with
              their positives
    TARGETS   slope -y_ij (a_i + a_j), what soft labels take off H; side: the shares a of rows and columns
    LOGISTIC  value softplus(l) - y l, slope sigmoid(l) - y; side: the target of a row's own pair
    ABSOLUTE  value |l - y|, slope its sign; side: the target of a row's own pair
Slopes are held in the type of the embeddings for the second product, raised by 2^GAIN: float16 holds 2^14 times what is
at most 2, so that 1e-6 in a large batch keeps its bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cardialign.kernels.contrastive.triton.tile import dot_rows, log_weights, soft_targets

SOFTMAX: tl.constexpr = tl.constexpr(0)
TARGETS: tl.constexpr = tl.constexpr(1)
LOGISTIC: tl.constexpr = tl.constexpr(2)
ABSOLUTE: tl.constexpr = tl.constexpr(3)


@triton.jit
def pull(z, lse_q, lse_k, GAIN: tl.constexpr):
    """2^GAIN H (M, N) from base-2 logits and base-2 log sums less GAIN.

    A logit never exceeds the sums it is part of, in exact arithmetic; the minimum keeps rounding at a threshold of
    alpha from overflow.
    """
    from_rows = tl.minimum(z - lse_q[:, None], GAIN, propagate_nan=tl.PropagateNan.ALL)
    from_columns = tl.minimum(z - lse_k[None, :], GAIN, propagate_nan=tl.PropagateNan.ALL)
    return tl.exp2(from_rows) + tl.exp2(from_columns)


@triton.jit
def log_one_plus(x):
    """log(1 + x) for x in [0, 1], relative error below 1e-7 down to 0.

    It is 2 artanh(x / (2 + x)), whose series ends at 1/3 to the 13th.
    """
    s = x / (2.0 + x)
    q = s * s
    series = 0.11111111 + q * (0.09090909 + q * 0.07692308)
    return 2.0 * s * (1.0 + q * (0.33333333 + q * (0.2 + q * (0.14285714 + q * series))))


@triton.jit
def judge(logit, y, ABSOLUTE_FORM: tl.constexpr):
    """(f, df/dl) of the pointwise losses, without differences that cancel: sigmoid(l) - 1 is -sigmoid(-l).

    A NaN stays NaN.
    """
    if ABSOLUTE_FORM:
        difference = logit - y
        value = tl.abs(difference)
        slope = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, difference))
    else:
        small = tl.exp2(-1.4426950408889634 * tl.abs(logit))
        fraction = small / (1.0 + small)  # sigmoid(-|l|)
        value = tl.maximum(logit, 0.0, propagate_nan=tl.PropagateNan.ALL) - y * logit + log_one_plus(small)
        slope = tl.where(logit > 0, (1.0 - y) - fraction, fraction - y)
    return value, slope


@triton.jit
def pair_slopes(
    Q, K, EQ, EK, SIZEQ, SIZEK, KEYQ, KEYK, SCALE, BIAS, SIDEQ, SIDEK,
    q_index, k_index, q_live, k_live, high, slope, low, weight,
    LOSS: tl.constexpr, FORM: tl.constexpr, KEYS: tl.constexpr, JACCARD: tl.constexpr,
    D: tl.constexpr, DS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DEPTH: tl.constexpr, DEPTH_S: tl.constexpr, PRECISION: tl.constexpr, GAIN: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """(2^GAIN slopes, values, 2^GAIN work) of the tile at these pointers, (M, N) each, 0 out of range.

        SIDEQ, SIDEK        at the tile's first row and column
        q_index, k_index    (M,), (N,) global indices; equal ones are a matching pair
        q_live, k_live      (M,), (N,) whether there is such a row, such a column
        SUMS                whether SOFTMAX is asked for its work

    Values are those of LOGISTIC and ABSOLUTE, work is that of these and, if SUMS, of SOFTMAX; without them SOFTMAX
    needs one register tile less, log2(alpha) / scale' being where its product begins. SIDEQ, SIDEK are read after the
    products, as late as can be: their elements take registers that the products want.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    RAISED: tl.constexpr = 1 << GAIN
    own = q_index[:, None] == k_index[None, :]
    if LOSS == SOFTMAX:
        log_alpha = log_weights(
            EQ, EK, SIZEQ, SIZEK, KEYQ, KEYK, q_index, k_index, q_live, k_live, high, slope, low,
            FORM, KEYS, JACCARD, DS, M, N, DEPTH_S, PRECISION,
        )  # fmt: skip
        scale = tl.load(SCALE)
        if SUMS:
            dots = dot_rows(tl.zeros((M, N), dtype=tl.float32), Q, K, q_live, k_live, D, M, N, DEPTH, PRECISION)
            z = dots * (scale * LOG2E) + log_alpha
        else:
            dots = dot_rows(log_alpha * (1.0 / (scale * LOG2E)), Q, K, q_live, k_live, D, M, N, DEPTH, PRECISION)
            z = dots * (scale * LOG2E)
        lse_q = tl.load(SIDEQ + tl.arange(0, M), mask=q_live, other=0.0) * LOG2E - GAIN
        lse_k = tl.load(SIDEK + tl.arange(0, N), mask=k_live, other=0.0) * LOG2E - GAIN
        g = pull(z, lse_q, lse_k, GAIN)
        value = g
        work = g * dots
    else:
        live = q_live[:, None] & k_live[None, :]
        y = soft_targets(
            EQ, EK, SIZEQ, SIZEK, KEYQ, KEYK, q_live, k_live, slope, low, weight,
            FORM, KEYS, JACCARD, DS, M, N, DEPTH_S, PRECISION,
        )  # fmt: skip
        side_q = tl.load(SIDEQ + tl.arange(0, M), mask=q_live, other=0.0)
        if LOSS == TARGETS:
            side_k = tl.load(SIDEK + tl.arange(0, N), mask=k_live, other=0.0)
            g = tl.where(live & (own == 0), -RAISED * y * (side_q[:, None] + side_k[None, :]), 0.0)
            value = g
            work = g
        else:
            y = tl.where(own, side_q[:, None], y)
            dots = dot_rows(tl.zeros((M, N), dtype=tl.float32), Q, K, q_live, k_live, D, M, N, DEPTH, PRECISION)
            value, g = judge(dots * tl.load(SCALE) + tl.load(BIAS), y, LOSS == ABSOLUTE)
            value = tl.where(live, value, 0.0)
            g = tl.where(live, g * RAISED, 0.0)
            work = g * dots
    return g, value, work
