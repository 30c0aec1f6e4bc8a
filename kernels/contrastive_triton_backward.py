"""Gradients of the negatives: H_ij = alpha_ij (e^(s_ij - R_i) + e^(s_ij - C_j)), sum_j H_ij t_j and sum_i H_ij v_i.

Two ways, both without atomics and with the same bits every time:
    fused   (d <= 256) a program owns a block of rows and accumulates H K in registers; run twice with the roles swapped
    strips  (larger d) a kernel writes H of a bounded block in the type of the embeddings, two matrix products of torch finish; the fused
            kernel would spill its (rows, d) accumulator
H is at most 2 and may be tiny: float16 holds 2^14 H, so that weights of 1e-6 in a large batch keep their bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.contrastive_triton_operands import Operands, Tile, power_of_two
from kernels.contrastive_triton_tile import dot_rows, log_weights
from kernels.triton_launch import Launch

FUSED_WIDTH = 256
"""Largest padded width whose accumulator stays in registers."""
BLOCK_SIDE = 4096
"""Rows and columns of H that exist at a time in the strip way: 32 MiB in half precision."""
PROGRAMS = 264
"""Programs worth having in a fused launch: 2 for each of 132 multiprocessors. Fixed, so that results do not depend on the device's size."""


@triton.jit
def pull(z, lse_q, lse_k, GAIN: tl.constexpr):
    """2^GAIN H (M, N) from base-2 logits and base-2 log sums less GAIN.

    A logit never exceeds the sums it is part of, in exact arithmetic; the minimum keeps rounding at a threshold of alpha from overflow.
    """
    from_rows = tl.minimum(z - lse_q[:, None], GAIN, propagate_nan=tl.PropagateNan.ALL)
    from_columns = tl.minimum(z - lse_k[None, :], GAIN, propagate_nan=tl.PropagateNan.ALL)
    return tl.exp2(from_rows) + tl.exp2(from_columns)


@triton.jit(do_not_specialize=["rows", "columns", "q_offset", "k_offset", "span"])
def fused_gradient(
    Q, K, EQ, EK, KEYQ, KEYK, SCALE, rows, columns, q_offset, k_offset, high, slope, low, span,
    LSEQ, LSEK, PARTIAL,
    FORM: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, DEPTH_S: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    """PARTIAL (spans, rows, D) float32 = sum over the span's columns of H_ij K_j. LSEQ (rows,), LSEK (columns,) natural logarithms."""
    LOG2E: tl.constexpr = 1.4426950408889634
    block = tl.program_id(0)
    part = tl.program_id(1)
    row = block * M + tl.arange(0, M)
    row_live = row < rows
    first = (block * M).to(tl.int64)
    Q += first * D
    EQ += first * DS
    KEYQ += first
    wide = tl.arange(0, WIDTH)
    wide_live = wide < D
    scale = tl.load(SCALE) * LOG2E
    lse_q = tl.load(LSEQ + row, mask=row_live, other=0.0) * LOG2E - GAIN
    accumulator = tl.zeros((M, WIDTH), tl.float32)
    for start in range(part * span, tl.minimum((part + 1) * span, columns), N):
        column = start + tl.arange(0, N)
        column_live = column < columns
        offset = tl.cast(start, tl.int64)
        log_alpha = log_weights(
            EQ, EK + offset * DS, KEYQ, KEYK + offset, q_offset + row, k_offset + column, row_live, column_live,
            high, slope, low, FORM, KEYS, DS, M, N, DEPTH_S, PRECISION,
        )  # fmt: skip
        z = dot_rows(log_alpha / scale, Q, K + offset * D, row_live, column_live, D, M, N, DEPTH, PRECISION) * scale
        lse_k = tl.load(LSEK + column, mask=column_live, other=0.0) * LOG2E - GAIN
        h = pull(z, lse_q, lse_k, GAIN).to(K.dtype.element_ty)
        k_pointer = K + offset * D + tl.arange(0, N)[:, None] * D + wide[None, :]
        if D == WIDTH:
            k = tl.load(k_pointer, mask=column_live[:, None], other=0.0)
        else:
            k = tl.load(k_pointer, mask=column_live[:, None] & wide_live[None, :], other=0.0)
        accumulator = tl.dot(h, k, accumulator, input_precision=PRECISION)
    out = PARTIAL + (part.to(tl.int64) * rows + first) * D + tl.arange(0, M)[:, None] * D + wide[None, :]
    tl.store(out, accumulator * (1.0 / (1 << GAIN)), mask=row_live[:, None] & wide_live[None, :])


@triton.jit(do_not_specialize=["rows", "columns", "q_offset", "k_offset", "stride"])
def pull_block(
    Q, K, EQ, EK, KEYQ, KEYK, SCALE, rows, columns, q_offset, k_offset, high, slope, low, stride,
    LSEQ, LSEK, H,
    FORM: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, DEPTH_S: tl.constexpr, PRECISION: tl.constexpr,
    GAIN: tl.constexpr,
):  # fmt: skip
    """H (rows, stride) = 2^GAIN H_ij in its own type; stride is a multiple of 16."""
    LOG2E: tl.constexpr = 1.4426950408889634
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    row_live = row < rows
    column_live = column < columns
    first = (tl.program_id(0) * M).to(tl.int64)
    offset = (tl.program_id(1) * N).to(tl.int64)
    scale = tl.load(SCALE) * LOG2E
    log_alpha = log_weights(
        EQ + first * DS, EK + offset * DS, KEYQ + first, KEYK + offset, q_offset + row, k_offset + column, row_live, column_live,
        high, slope, low, FORM, KEYS, DS, M, N, DEPTH_S, PRECISION,
    )  # fmt: skip
    z = dot_rows(log_alpha / scale, Q + first * D, K + offset * D, row_live, column_live, D, M, N, DEPTH, PRECISION) * scale
    lse_q = tl.load(LSEQ + row, mask=row_live, other=0.0) * LOG2E - GAIN
    lse_k = tl.load(LSEK + column, mask=column_live, other=0.0) * LOG2E - GAIN
    out = H + first * tl.multiple_of(stride, 16) + tl.arange(0, M)[:, None] * tl.multiple_of(stride, 16) + column[None, :]
    tl.store(out, pull(z, lse_q, lse_k, GAIN).to(H.dtype.element_ty), mask=row_live[:, None] & column_live[None, :])


def is_fused(width: int) -> bool:
    """Whether embeddings of this width take the fused kernel."""
    return power_of_two(width) <= FUSED_WIDTH


def fused_tile(dtype: torch.dtype) -> Tile:
    """Tile and launch of the fused kernel; `cardialign bench compile` shows that each is free of spills."""
    if dtype == torch.float32:
        return Tile(64, 32, depth=32, num_warps=8, num_stages=2)
    return Tile(64, 64, depth=64, num_warps=8, num_stages=2)


def pull_tile(dtype: torch.dtype, architecture: int) -> Tile:
    """Tile and launch of the kernel that writes H; `cardialign bench compile` shows that each is free of spills."""
    if dtype == torch.float32:
        return Tile(64, 64, depth=32, num_warps=4, num_stages=2)
    if architecture >= 90:
        return Tile(128, 128, depth=64, num_warps=8, num_stages=3)
    return Tile(128, 64, depth=64, num_warps=8, num_stages=3)


def gain(dtype: torch.dtype) -> int:
    """Power of two by which H is raised while it is held in `dtype`."""
    return 14 if dtype == torch.float16 else 0


def gradients(operands: Operands, row_lse: Tensor, column_lse: Tensor, architecture: int) -> tuple[Tensor, Tensor]:
    """sum_j H_ij t_j (b, d) and sum_i H_ij v_i (B, d) in float32; row_lse (b,) and column_lse (B,) include the positives."""
    row_lse, column_lse = row_lse.float().contiguous(), column_lse.float().contiguous()
    if not is_fused(operands.v.shape[1]):
        return _strip_gradients(operands, row_lse, column_lse, architecture)
    tile = fused_tile(operands.v.dtype)
    sums = []
    for side, own, other in ((operands, row_lse, column_lse), (operands.swapped(), column_lse, row_lse)):
        launch = fused_launch(side, own, other, tile)
        launch.run()
        partial = launch.arguments["PARTIAL"]
        sums.append(partial[0] if partial.shape[0] == 1 else partial.sum(0))
    return sums[0], sums[1]


def fused_launch(operands: Operands, row_lse: Tensor, column_lse: Tensor, tile: Tile) -> Launch:
    """The gradient of the rows of `operands`, with its partials allocated."""
    (rows, width), columns = operands.v.shape, operands.t.shape[0]
    row_blocks, column_blocks = triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns)
    span = triton.cdiv(column_blocks, min(column_blocks, triton.cdiv(PROGRAMS, row_blocks))) * tile.columns
    spans = triton.cdiv(columns, span)
    partial = torch.empty((spans, rows, width), dtype=torch.float32, device=operands.v.device)
    arguments = {**operands.arguments, "span": span, "LSEQ": row_lse, "LSEK": column_lse, "PARTIAL": partial}
    constants = {**operands.constants(tile), "WIDTH": power_of_two(width), "GAIN": gain(operands.v.dtype)}
    return Launch(fused_gradient, (row_blocks, spans), arguments, constants, tile.num_warps, tile.num_stages)


def _strip_gradients(operands: Operands, row_lse: Tensor, column_lse: Tensor, architecture: int) -> tuple[Tensor, Tensor]:
    v, t = operands.v, operands.t
    tile = pull_tile(v.dtype, architecture)
    d_v = torch.zeros(v.shape, dtype=torch.float32, device=v.device)
    d_t = torch.zeros(t.shape, dtype=torch.float32, device=t.device)
    room = torch.empty(_stride(v.shape[0]) * _stride(t.shape[0]), dtype=v.dtype, device=v.device)
    for i in range(0, v.shape[0], BLOCK_SIDE):
        for j in range(0, t.shape[0], BLOCK_SIDE):
            rows, columns = slice(i, min(i + BLOCK_SIDE, v.shape[0])), slice(j, min(j + BLOCK_SIDE, t.shape[0]))
            launch = pull_launch(operands.block(rows, columns), row_lse[rows], column_lse[columns], room, tile)
            launch.run()
            h = launch.arguments["H"][:, : columns.stop - columns.start]
            d_v[rows] += _product(h, t[columns])
            d_t[columns] += _product(h.T, v[rows])
    factor = 2.0 ** -gain(v.dtype)
    return d_v.mul_(factor), d_t.mul_(factor)


def _stride(size: int) -> int:
    """Row length of a block of H: a multiple of 64 elements, so that rows start on 128 bytes."""
    return -(-min(size, BLOCK_SIDE) // 64) * 64


def pull_launch(operands: Operands, row_lse: Tensor, column_lse: Tensor, room: Tensor, tile: Tile) -> Launch:
    """H of all of `operands` into the start of `room`."""
    rows, columns = operands.v.shape[0], operands.t.shape[0]
    stride = _stride(columns)
    h = room[: rows * stride].view(rows, stride)
    arguments = {**operands.arguments, "stride": stride, "LSEQ": row_lse, "LSEK": column_lse, "H": h}
    constants = {**operands.constants(tile), "GAIN": gain(operands.v.dtype)}
    grid = (triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns))
    return Launch(pull_block, grid, arguments, constants, tile.num_warps, tile.num_stages)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32. Half-precision results would round every block of the sum over the batch."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
