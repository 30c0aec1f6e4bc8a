"""Row and column log-sum-exp of the negatives in one pass, and the sum of alpha: the forward kernel and its launch.

Each program owns a block of rows and a span of columns. Row sums stay in registers (online maximum); column sums leave as one partial
per row block. A second stage joins the partials in a fixed order: no atomics, the same bits every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.contrastive_triton_operands import Operands, Tile
from kernels.contrastive_triton_tile import dot_rows, log_weights
from kernels.triton_launch import Launch

PARTIAL_BYTES = 64 << 20
"""Room for the column partials of one launch; more rows are done in several launches."""
PROGRAMS = 528
"""Programs worth having in a launch: 4 for each of 132 multiprocessors. Fixed, so that results do not depend on the device's size."""


@triton.jit(do_not_specialize=["rows", "columns", "q_offset", "k_offset", "span"])
def negative_log_sums(
    Q, K, EQ, EK, KEYQ, KEYK, SCALE, rows, columns, q_offset, k_offset, high, slope, low, span,
    ROW_PARTIAL, COLUMN_PARTIAL, ALPHA_PARTIAL,
    FORM: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, DEPTH_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """ROW_PARTIAL, ALPHA_PARTIAL (spans, rows); COLUMN_PARTIAL (row blocks, columns). Natural logarithms, -inf where nothing counts."""
    LOG2E: tl.constexpr = 1.4426950408889634
    LN2: tl.constexpr = 0.6931471805599453
    FLOOR: tl.constexpr = -1e38  # finite, so that -inf - maximum is never NaN
    block = tl.program_id(0)
    part = tl.program_id(1)
    row = block * M + tl.arange(0, M)
    row_live = row < rows
    # 64-bit only once per tile: offsets inside a tile are small, B * d need not be.
    first = (block * M).to(tl.int64)
    Q += first * D
    EQ += first * DS
    KEYQ += first
    scale = tl.load(SCALE) * LOG2E
    peak = tl.full((M,), FLOOR, tl.float32)
    total = tl.zeros((M,), tl.float32)
    alpha_total = tl.zeros((M,), tl.float32)
    for start in range(part * span, tl.minimum((part + 1) * span, columns), N):
        column = start + tl.arange(0, N)
        column_live = column < columns
        offset = tl.cast(start, tl.int64)
        log_alpha = log_weights(
            EQ, EK + offset * DS, KEYQ, KEYK + offset, q_offset + row, k_offset + column, row_live, column_live,
            high, slope, low, FORM, KEYS, DS, M, N, DEPTH_S, PRECISION,
        )  # fmt: skip
        if FORM != 0 or KEYS:
            alpha_total += tl.sum(tl.exp2(log_alpha), 1)
        z = dot_rows(log_alpha / scale, Q, K + offset * D, row_live, column_live, D, M, N, DEPTH, PRECISION) * scale
        higher = tl.maximum(peak, tl.max(z, 1))
        total = total * tl.exp2(peak - higher) + tl.sum(tl.exp2(z - higher[:, None]), 1)
        peak = higher
        column_peak = tl.maximum(tl.max(z, 0), FLOOR)
        column_total = tl.sum(tl.exp2(z - column_peak[None, :]), 0)
        tl.store(COLUMN_PARTIAL + block.to(tl.int64) * columns + column, (column_peak + tl.log2(column_total)) * LN2, mask=column_live)
    out = part.to(tl.int64) * rows + row
    tl.store(ROW_PARTIAL + out, (peak + tl.log2(total)) * LN2, mask=row_live)
    tl.store(ALPHA_PARTIAL + out, alpha_total, mask=row_live)


def forward_tile(dtype: torch.dtype) -> Tile:
    """Tile and launch of the forward kernel; `cardialign bench compile` shows that each is free of spills."""
    if dtype == torch.float32:
        return Tile(64, 32, depth=32, num_warps=4, num_stages=2)
    return Tile(128, 64, depth=64, num_warps=8, num_stages=3)


def log_sums(operands: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of the negatives of rows (b,) and columns (B,) in float32, and the sum of alpha (0-dim, float64)."""
    v, t = operands.v, operands.t
    rows, columns = v.shape[0], t.shape[0]
    tile = forward_tile(v.dtype)
    strip = max(1, PARTIAL_BYTES // (4 * columns)) * tile.rows
    row_lse = torch.empty(rows, dtype=torch.float32, device=v.device)
    column_lse = torch.full((columns,), -float("inf"), dtype=torch.float32, device=v.device)
    alpha = torch.zeros((), dtype=torch.float64, device=v.device)
    for start in range(0, rows, strip):
        mine = slice(start, min(start + strip, rows))
        launch = forward_launch(operands.block(mine, slice(0, columns)), tile)
        launch.run()
        row_lse[mine] = torch.logsumexp(launch.arguments["ROW_PARTIAL"], 0)
        column_lse = torch.logaddexp(column_lse, torch.logsumexp(launch.arguments["COLUMN_PARTIAL"], 0))
        alpha += launch.arguments["ALPHA_PARTIAL"].sum(dtype=torch.float64)
    return row_lse, column_lse, alpha


def forward_launch(operands: Operands, tile: Tile) -> Launch:
    """One launch over all of `operands`, with its partials allocated."""
    rows, columns, device = operands.v.shape[0], operands.t.shape[0], operands.v.device
    row_blocks, column_blocks = triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns)
    span = triton.cdiv(column_blocks, min(column_blocks, triton.cdiv(PROGRAMS, row_blocks))) * tile.columns
    spans = triton.cdiv(columns, span)
    partials = {
        "ROW_PARTIAL": torch.empty((spans, rows), dtype=torch.float32, device=device),
        "COLUMN_PARTIAL": torch.empty((row_blocks, columns), dtype=torch.float32, device=device),
        "ALPHA_PARTIAL": torch.empty((spans, rows), dtype=torch.float32, device=device),
    }
    arguments = {**operands.arguments, "span": span, **partials}
    return Launch(negative_log_sums, (row_blocks, spans), arguments, operands.constants(tile), tile.num_warps, tile.num_stages)
