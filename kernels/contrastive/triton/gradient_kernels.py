"""The two kernels that turn slopes into gradients, whatever the loss.

sum_j g_ij K_j accumulated in registers, or a block of g written out. Both may also leave the sums of values, slopes and
work along their rows. No atomics: every program has output of its own, a second stage adds in a fixed order.
Arguments that are not named here are those of every kernel (`tile`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from cardialign.kernels.contrastive.triton.losses import SOFTMAX, pair_slopes

VARYING = ["rows", "columns", "q_offset", "k_offset", "span", "stride"]


@triton.jit(do_not_specialize=VARYING)
def fused_gradient(
    Q, K, EQ, EK, SIZEQ, SIZEK, KEYQ, KEYK, SCALE, rows, columns, q_offset, k_offset, high, slope, low, weight, span,
    BIAS, SIDEQ, SIDEK, PARTIAL, VALUES, SLOPES, WORK,
    LOSS: tl.constexpr, FORM: tl.constexpr, KEYS: tl.constexpr, JACCARD: tl.constexpr,
    D: tl.constexpr, DS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DEPTH: tl.constexpr, DEPTH_S: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, GAIN: tl.constexpr, GRADIENT: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks, spans): the gradient of the rows, and sums over the span's columns.

    span                    columns of one program
    BIAS                    one element, float32
    SIDEQ, SIDEK            (rows,), (columns,) float32, the sides of the loss (`losses`)
    PARTIAL                 (spans, rows, D) float32 = sum over the span's columns of g_ij K_j; written where
                            GRADIENT
    VALUES, SLOPES, WORK    (spans, rows) float32, sums of those of the pairs; written where SUMS, the first two not
                            for SOFTMAX
    WIDTH                   D rounded up to a power of two, the width of the accumulator
    GAIN                    slopes are held 2^GAIN times as large
    """
    block = tl.program_id(0)
    part = tl.program_id(1)
    row = block * M + tl.arange(0, M)
    row_live = row < rows
    # 64-bit only once per tile: offsets inside a tile are small, B * d need not be.
    first = (block * M).to(tl.int64)
    Q += first * D
    EQ += first * DS
    SIZEQ += first
    KEYQ += first
    SIDEQ += first
    wide = tl.arange(0, WIDTH)
    wide_live = wide < D
    accumulator = tl.zeros((M, WIDTH), tl.float32)
    values = tl.zeros((M,), tl.float32)
    slopes = tl.zeros((M,), tl.float32)
    work = tl.zeros((M,), tl.float32)
    for start in range(part * span, tl.minimum((part + 1) * span, columns), N):
        column = start + tl.arange(0, N)
        column_live = column < columns
        offset = tl.cast(start, tl.int64)
        g, value, pair_work = pair_slopes(
            Q, K + offset * D, EQ, EK + offset * DS, SIZEQ, SIZEK + offset, KEYQ, KEYK + offset, SCALE, BIAS,
            SIDEQ, SIDEK + offset, q_offset + row, k_offset + column, row_live, column_live, high, slope, low, weight,
            LOSS, FORM, KEYS, JACCARD, D, DS, M, N, DEPTH, DEPTH_S, PRECISION, GAIN, SUMS,
        )  # fmt: skip
        if SUMS:
            if LOSS != SOFTMAX:
                values += tl.sum(value, 1)
                slopes += tl.sum(g, 1)
            work += tl.sum(pair_work, 1)
        if GRADIENT:
            k_pointer = K + offset * D + tl.arange(0, N)[:, None] * D + wide[None, :]
            if D == WIDTH:
                k = tl.load(k_pointer, mask=column_live[:, None], other=0.0)
            else:
                k = tl.load(k_pointer, mask=column_live[:, None] & wide_live[None, :], other=0.0)
            accumulator = tl.dot(g.to(K.dtype.element_ty), k, accumulator, input_precision=PRECISION)
    line = part.to(tl.int64) * rows + first
    if GRADIENT:
        out = PARTIAL + line * D + tl.arange(0, M)[:, None] * D + wide[None, :]
        tl.store(out, accumulator * (1.0 / (1 << GAIN)), mask=row_live[:, None] & wide_live[None, :])
    if SUMS:
        if LOSS != SOFTMAX:
            tl.store(VALUES + line + tl.arange(0, M), values, mask=row_live)
            tl.store(SLOPES + line + tl.arange(0, M), slopes * (1.0 / (1 << GAIN)), mask=row_live)
        tl.store(WORK + line + tl.arange(0, M), work * (1.0 / (1 << GAIN)), mask=row_live)


@triton.jit(do_not_specialize=VARYING)
def slope_block(
    Q, K, EQ, EK, SIZEQ, SIZEK, KEYQ, KEYK, SCALE, rows, columns, q_offset, k_offset, high, slope, low, weight, stride,
    BIAS, SIDEQ, SIDEK, G, VALUES, SLOPES, WORK,
    LOSS: tl.constexpr, FORM: tl.constexpr, KEYS: tl.constexpr, JACCARD: tl.constexpr,
    D: tl.constexpr, DS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DEPTH: tl.constexpr, DEPTH_S: tl.constexpr, PRECISION: tl.constexpr,
    GAIN: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks, column blocks): the slopes themselves, and sums over a block's columns.

    stride                  row length of G in elements, a multiple of 16
    G                       (rows, stride) = 2^GAIN g_ij, in the type of the embeddings
    VALUES, SLOPES, WORK    (column blocks, rows) float32, as in `fused_gradient`
    """
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    row_live = row < rows
    column_live = column < columns
    first = (tl.program_id(0) * M).to(tl.int64)
    offset = (tl.program_id(1) * N).to(tl.int64)
    g, value, pair_work = pair_slopes(
        Q + first * D, K + offset * D, EQ + first * DS, EK + offset * DS,
        SIZEQ + first, SIZEK + offset, KEYQ + first, KEYK + offset, SCALE, BIAS, SIDEQ + first, SIDEK + offset,
        q_offset + row, k_offset + column, row_live, column_live, high, slope, low, weight,
        LOSS, FORM, KEYS, JACCARD, D, DS, M, N, DEPTH, DEPTH_S, PRECISION, GAIN, SUMS,
    )  # fmt: skip
    if SUMS:
        line = tl.program_id(1).to(tl.int64) * rows + row
        if LOSS != SOFTMAX:
            tl.store(VALUES + line, tl.sum(value, 1), mask=row_live)
            tl.store(SLOPES + line, tl.sum(g, 1) * (1.0 / (1 << GAIN)), mask=row_live)
        tl.store(WORK + line, tl.sum(pair_work, 1) * (1.0 / (1 << GAIN)), mask=row_live)
    out = (
        G + first * tl.multiple_of(stride, 16) + tl.arange(0, M)[:, None] * tl.multiple_of(stride, 16) + column[None, :]
    )
    tl.store(out, g.to(G.dtype.element_ty), mask=row_live[:, None] & column_live[None, :])
