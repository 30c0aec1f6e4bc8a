"""Row and column sums of the losses that divide by one, each in one pass.

Log-sum-exp of the negatives with the sum of alpha, and the mass and work of soft targets. Each program owns a block of
rows and a span of columns. Row sums stay in registers (online maximum); column sums leave as one partial per row block.
A second stage joins the partials in a fixed order: no atomics, the same bits every time.
Arguments that are not named here are those of every kernel (`tile`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cardialign.kernels.contrastive.blocks import TargetSums
from cardialign.kernels.contrastive.triton.operands import Operands, Tile, split
from cardialign.kernels.contrastive.triton.tile import dot_rows, log_weights, soft_targets
from cardialign.kernels.triton_support.launch import Launch

PARTIAL_BYTES = 64 << 20
"""Room for the column partials of one launch; more rows are done in several launches."""
PROGRAMS = 528
"""Programs worth having in a launch: 4 for each of 132 multiprocessors.

Fixed, so that results do not depend on the device's size.
"""


@triton.jit(do_not_specialize=["rows", "columns", "q_offset", "k_offset", "span"])
def negative_log_sums(
    Q, K, EQ, EK, SIZEQ, SIZEK, KEYQ, KEYK, SCALE, rows, columns, q_offset, k_offset, high, slope, low, weight, span,
    ROW_PARTIAL, COLUMN_PARTIAL, ALPHA_PARTIAL,
    FORM: tl.constexpr, KEYS: tl.constexpr, JACCARD: tl.constexpr, D: tl.constexpr, DS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, DEPTH_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks, spans): log-sum-exp of the negatives, natural logarithms, -inf where nothing counts.

        span              columns of one program
        ROW_PARTIAL       (spans, rows) float32, over the span's columns
        COLUMN_PARTIAL    (row blocks, columns) float32, over the block's rows
        ALPHA_PARTIAL     (spans, rows) float32, sums of alpha

    Logits are in base 2: z = log2(alpha) + scale log2(e) q.k, -inf where a pair does not count:
    the positive, alpha = 0, out of range.
    """
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
    SIZEQ += first
    KEYQ += first
    scale = tl.load(SCALE) * LOG2E
    inverse = 1.0 / scale
    peak = tl.full((M,), FLOOR, tl.float32)
    total = tl.zeros((M,), tl.float32)
    alpha_total = tl.zeros((M,), tl.float32)
    for start in range(part * span, tl.minimum((part + 1) * span, columns), N):
        column = start + tl.arange(0, N)
        column_live = column < columns
        offset = tl.cast(start, tl.int64)
        log_alpha = log_weights(
            EQ, EK + offset * DS, SIZEQ, SIZEK + offset, KEYQ, KEYK + offset,
            q_offset + row, k_offset + column, row_live, column_live,
            high, slope, low, FORM, KEYS, JACCARD, DS, M, N, DEPTH_S, PRECISION,
        )  # fmt: skip
        if FORM != 0 or KEYS:
            alpha_total += tl.sum(tl.exp2(log_alpha), 1)
        z = dot_rows(log_alpha * inverse, Q, K + offset * D, row_live, column_live, D, M, N, DEPTH, PRECISION) * scale
        higher = tl.maximum(peak, tl.max(z, 1))
        total = total * tl.exp2(peak - higher) + tl.sum(tl.exp2(z - higher[:, None]), 1)
        peak = higher
        column_peak = tl.maximum(tl.max(z, 0), FLOOR)
        column_total = tl.sum(tl.exp2(z - column_peak[None, :]), 0)
        tl.store(
            COLUMN_PARTIAL + block.to(tl.int64) * columns + column,
            (column_peak + tl.log2(column_total)) * LN2,
            mask=column_live,
        )
    out = part.to(tl.int64) * rows + row
    tl.store(ROW_PARTIAL + out, (peak + tl.log2(total)) * LN2, mask=row_live)
    tl.store(ALPHA_PARTIAL + out, alpha_total, mask=row_live)


@triton.jit(do_not_specialize=["rows", "columns", "q_offset", "k_offset", "span"])
def match_sums(
    Q, K, EQ, EK, SIZEQ, SIZEK, KEYQ, KEYK, SCALE, rows, columns, q_offset, k_offset, high, slope, low, weight, span,
    ROW_MASS, ROW_WORK, COLUMN_MASS, COLUMN_WORK,
    FORM: tl.constexpr, KEYS: tl.constexpr, JACCARD: tl.constexpr, D: tl.constexpr, DS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, DEPTH_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks, spans): sums of y_ij and of y_ij s_ij over other records.

    span                        columns of one program
    ROW_MASS, ROW_WORK          (spans, rows) float32, over the span's columns
    COLUMN_MASS, COLUMN_WORK    (row blocks, columns) float32, over the block's rows
    """
    block = tl.program_id(0)
    part = tl.program_id(1)
    row = block * M + tl.arange(0, M)
    row_live = row < rows
    first = (block * M).to(tl.int64)
    Q += first * D
    EQ += first * DS
    SIZEQ += first
    KEYQ += first
    scale = tl.load(SCALE)
    mass = tl.zeros((M,), tl.float32)
    work = tl.zeros((M,), tl.float32)
    for start in range(part * span, tl.minimum((part + 1) * span, columns), N):
        column = start + tl.arange(0, N)
        column_live = column < columns
        offset = tl.cast(start, tl.int64)
        y = soft_targets(
            EQ, EK + offset * DS, SIZEQ, SIZEK + offset, KEYQ, KEYK + offset, row_live, column_live, slope, low, weight,
            FORM, KEYS, JACCARD, DS, M, N, DEPTH_S, PRECISION,
        )  # fmt: skip
        other = ((q_offset + row)[:, None] != (k_offset + column)[None, :]) & row_live[:, None] & column_live[None, :]
        y = tl.where(other, y, 0.0)
        dots = dot_rows(
            tl.zeros((M, N), dtype=tl.float32), Q, K + offset * D, row_live, column_live, D, M, N, DEPTH, PRECISION
        )
        out = block.to(tl.int64) * columns + column
        mass += tl.sum(y, 1)
        tl.store(COLUMN_MASS + out, tl.sum(y, 0), mask=column_live)
        y *= dots * scale
        work += tl.sum(y, 1)
        tl.store(COLUMN_WORK + out, tl.sum(y, 0), mask=column_live)
    line = part.to(tl.int64) * rows + row
    tl.store(ROW_MASS + line, mass, mask=row_live)
    tl.store(ROW_WORK + line, work, mask=row_live)


def forward_tile(dtype: torch.dtype, jaccard: bool = False) -> Tile:
    """Tile and launch of the forward kernels; `cardialign bench compile` shows that each is free of spills.

    Of nine in half precision the fastest without spills on an H100 (16,384 pairs, widths 256 and 512); Jaccard
    similarity takes registers that only eight warps have.
    """
    if dtype == torch.float32:
        return Tile(64, 32, depth=32, num_warps=4, num_stages=2)
    return Tile(128, 64, depth=64, num_warps=8 if jaccard else 4, num_stages=3)


def match_tile(dtype: torch.dtype) -> Tile:
    """Tile and launch of the target sums.

    y and the logits are two register tiles, so depth is half that of the log-sums.
    """
    if dtype == torch.float32:
        return Tile(64, 32, depth=32, num_warps=4, num_stages=2)
    return Tile(128, 64, depth=32, num_warps=8, num_stages=3)


def _strips(operands: Operands, tile: Tile) -> Iterator[slice]:
    """Rows of one launch after the other, so many that the column partials of a launch find room."""
    rows, columns = operands.v.shape[0], operands.t.shape[0]
    strip = max(1, PARTIAL_BYTES // (4 * columns)) * tile.rows
    for start in range(0, rows, strip):
        yield slice(start, min(start + strip, rows))


def log_sums(operands: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of the negatives of rows (b,) and columns (B,) in float32, and the sum of alpha (0-dim, float64)."""
    v, t = operands.v, operands.t
    tile = forward_tile(v.dtype, operands.jaccard)
    row_lse = torch.empty(v.shape[0], dtype=torch.float32, device=v.device)
    column_lse = torch.full((t.shape[0],), -float("inf"), dtype=torch.float32, device=v.device)
    alpha = torch.zeros((), dtype=torch.float64, device=v.device)
    for mine in _strips(operands, tile):
        launch = forward_launch(operands.block(mine, slice(0, t.shape[0])), tile)
        launch.run()
        row_lse[mine] = torch.logsumexp(launch.arguments["ROW_PARTIAL"], 0)
        column_lse = torch.logaddexp(column_lse, torch.logsumexp(launch.arguments["COLUMN_PARTIAL"], 0))
        alpha += launch.arguments["ALPHA_PARTIAL"].sum(dtype=torch.float64)
    return row_lse, column_lse, alpha


def match_totals(operands: Operands) -> TargetSums:
    """Mass and work of the soft targets of `operands`, float32."""
    v, t = operands.v, operands.t
    tile = match_tile(v.dtype)
    rows = [torch.empty(v.shape[0], dtype=torch.float32, device=v.device) for _ in range(2)]
    columns = [torch.zeros(t.shape[0], dtype=torch.float32, device=v.device) for _ in range(2)]
    for mine in _strips(operands, tile):
        launch = match_launch(operands.block(mine, slice(0, t.shape[0])), tile)
        launch.run()
        for of_rows, of_columns, name in zip(rows, columns, ("MASS", "WORK"), strict=True):
            of_rows[mine] = launch.arguments[f"ROW_{name}"].sum(0)
            of_columns += launch.arguments[f"COLUMN_{name}"].sum(0)
    return TargetSums(*rows, *columns)


def forward_launch(operands: Operands, tile: Tile) -> Launch:
    """One launch of the log-sums over all of `operands`, with its partials allocated."""
    return _launch(
        negative_log_sums, operands, tile, rows=("ROW_PARTIAL", "ALPHA_PARTIAL"), columns=("COLUMN_PARTIAL",)
    )


def match_launch(operands: Operands, tile: Tile) -> Launch:
    """One launch of the target sums over all of `operands`, with its partials allocated."""
    return _launch(match_sums, operands, tile, rows=("ROW_MASS", "ROW_WORK"), columns=("COLUMN_MASS", "COLUMN_WORK"))


def _launch(kernel: Any, operands: Operands, tile: Tile, rows: Sequence[str], columns: Sequence[str]) -> Launch:
    (b, n), device = (operands.v.shape[0], operands.t.shape[0]), operands.v.device
    row_blocks, spans, span = split(b, n, tile, PROGRAMS)
    partials = {name: torch.empty((spans, b), dtype=torch.float32, device=device) for name in rows}
    partials |= {name: torch.empty((row_blocks, n), dtype=torch.float32, device=device) for name in columns}
    arguments = {**operands.arguments, "span": span, **partials}
    return Launch(kernel, (row_blocks, spans), arguments, operands.constants(tile), tile.num_warps, tile.num_stages)
