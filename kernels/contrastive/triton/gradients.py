"""Gradients of a block from the slopes g_ij of its pairs, whatever the loss: sum_j g_ij t_j and sum_i g_ij v_i.

And from the same tiles, before slopes are rounded, the sums of values, slopes and work. Two ways, both without atomics
and with the same bits every time:
    fused   a program owns a block of rows and accumulates g K in registers; run twice with the roles swapped: in
            float32 to d = 256, in half precision to d = 128
    strips  (larger d) a kernel writes g of a bounded block in the type of the embeddings, two matrix products of torch
            finish. On an H100 at d = 256 in bf16 it takes 0.53 of the time of the fused kernel; past 256 that would
            spill its (rows, d) accumulator
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from cardialign.kernels.contrastive.triton.gradient_kernels import fused_gradient, slope_block
from cardialign.kernels.contrastive.triton.losses import ABSOLUTE, LOGISTIC, SOFTMAX, TARGETS
from cardialign.kernels.contrastive.triton.operands import Operands, Tile, power_of_two, split
from cardialign.kernels.triton_support.launch import Launch

FUSED_WIDTH = {torch.float32: 256, torch.bfloat16: 128, torch.float16: 128}
"""Largest padded width that takes the fused kernel; beyond 256 its accumulator leaves the registers."""
BLOCK_SIDES = (16384, 8192)
"""Rows and columns of g that exist at a time in the strip way: 256 MiB in half precision.

On an H100 a backward pass takes 1.34 times as long in blocks of 4,096 x 4,096.
"""
PROGRAMS = 264
"""Programs worth having in a fused launch: 2 for each of 132 multiprocessors.

Fixed, so that results do not depend on the device's size.
"""
LOSSES = {"softmax": SOFTMAX.value, "targets": TARGETS.value, "logistic": LOGISTIC.value, "absolute": ABSOLUTE.value}


@dataclass(frozen=True)
class Pairs:
    """Operands and the loss they are judged by.

    row_side (b,), column_side (n,): float32, what `losses` calls its side. bias: one element, float32.
    Both are read as nothing where a loss has no use for them.
    """

    operands: Operands
    loss: str
    row_side: Tensor
    column_side: Tensor
    bias: Tensor

    def swapped(self) -> Pairs:
        """Columns as rows and rows as columns."""
        return replace(self, operands=self.operands.swapped(), row_side=self.column_side, column_side=self.row_side)

    def block(self, rows: slice, columns: slice) -> Pairs:
        """Some rows against some columns."""
        operands = self.operands.block(rows, columns)
        return replace(self, operands=operands, row_side=self.row_side[rows], column_side=self.column_side[columns])


def is_fused(width: int, dtype: torch.dtype) -> bool:
    """Whether embeddings of this width and type take the fused kernel."""
    return power_of_two(width) <= FUSED_WIDTH[dtype]


def fused_tile(dtype: torch.dtype, sums: bool) -> Tile:
    """Tile and launch of the fused kernel; `cardialign bench compile` shows that each is free of spills."""
    if dtype == torch.float32:
        return Tile(64, 16 if sums else 32, depth=32, num_warps=8, num_stages=2)
    return Tile(64, 64, depth=64, num_warps=8, num_stages=2)


def slope_tile(pairs: Pairs, architecture: int) -> Tile:
    """Tile and launch of the kernel that writes g; `cardialign bench compile` shows that each is free of spills."""
    if pairs.operands.v.dtype == torch.float32:
        return Tile(64, 64, depth=32, num_warps=8, num_stages=2)
    if architecture >= 90 and pairs.loss == "softmax" and not pairs.operands.jaccard:
        return Tile(64, 128, depth=64, num_warps=4, num_stages=3)
    return Tile(128, 64, depth=64, num_warps=8, num_stages=3)


def gain(dtype: torch.dtype) -> int:
    """Power of two by which g is raised while it is held in `dtype`."""
    return 14 if dtype == torch.float16 else 0


class Sums(NamedTuple):
    """Of all pairs: values and slopes of the pointwise losses, and the work, slope times dot (0-dim float64)."""

    values: Tensor
    slopes: Tensor
    work: Tensor


def gradients(pairs: Pairs, sums: bool, architecture: int) -> tuple[Tensor, Tensor, Sums | None]:
    """sum_j g_ij t_j (b, d), sum_i g_ij v_i (n, d) in float32, and the sums if wanted."""
    if not is_fused(pairs.operands.v.shape[1], pairs.operands.v.dtype):
        return _strips(pairs, sums, architecture)
    rows, columns = fused_launch(pairs, sums), fused_launch(pairs.swapped(), sums=False)
    rows.run()
    columns.run()
    return _over_spans(rows), _over_spans(columns), _sums(rows) if sums else None


def evaluated(pairs: Pairs) -> Sums:
    """The sums alone."""
    launch = fused_launch(pairs, sums=True, gradient=False)
    launch.run()
    return _sums(launch)


def _sums(launch: Launch) -> Sums:
    return Sums(*(launch.arguments[name].sum(dtype=torch.float64) for name in ("VALUES", "SLOPES", "WORK")))


def _over_spans(launch: Launch) -> Tensor:
    partial: Tensor = launch.arguments["PARTIAL"]
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)


def fused_launch(pairs: Pairs, sums: bool, gradient: bool = True) -> Launch:
    """The gradient of the rows of `pairs`, and sums of values and slopes, with their partials allocated."""
    operands = pairs.operands
    (rows, width), columns = operands.v.shape, operands.t.shape[0]
    tile = fused_tile(operands.v.dtype, sums)
    row_blocks, spans, span = split(rows, columns, tile, PROGRAMS)
    arguments = {
        **_arguments(pairs, sums, spans),
        "span": span,
        "PARTIAL": _room(operands, spans if gradient else 0, rows, width),
    }
    constants = {
        **_constants(pairs, tile, sums),
        "WIDTH": power_of_two(width) if gradient else 16,
        "GRADIENT": gradient,
    }
    return Launch(fused_gradient, (row_blocks, spans), arguments, constants, tile.num_warps, tile.num_stages)


def _strips(pairs: Pairs, sums: bool, architecture: int) -> tuple[Tensor, Tensor, Sums | None]:
    v, t = pairs.operands.v, pairs.operands.t
    tile = slope_tile(pairs, architecture)
    d_v = torch.zeros(v.shape, dtype=torch.float32, device=v.device)
    d_t = torch.zeros(t.shape, dtype=torch.float32, device=t.device)
    total = torch.zeros(3, dtype=torch.float64, device=v.device)
    high, wide = BLOCK_SIDES
    room = torch.empty(min(high, v.shape[0]) * _stride(t.shape[0]), dtype=v.dtype, device=v.device)
    for i in range(0, v.shape[0], high):
        for j in range(0, t.shape[0], wide):
            rows, columns = slice(i, min(i + high, v.shape[0])), slice(j, min(j + wide, t.shape[0]))
            launch = slope_launch(pairs.block(rows, columns), room, tile, sums)
            launch.run()
            g = launch.arguments["G"][:, : columns.stop - columns.start]
            d_v[rows] += _product(g, t[columns])
            d_t[columns] += _product(g.T, v[rows])
            if sums:
                total += torch.stack(_sums(launch))
    factor = 2.0 ** -gain(v.dtype)
    return d_v.mul_(factor), d_t.mul_(factor), Sums(*total) if sums else None


def _stride(size: int) -> int:
    """Row length of a block of g: a multiple of 64 elements, so that rows start on 128 bytes."""
    return -(-min(size, BLOCK_SIDES[1]) // 64) * 64


def slope_launch(pairs: Pairs, room: Tensor, tile: Tile, sums: bool) -> Launch:
    """g of all of `pairs` into the start of `room`."""
    rows, columns = pairs.operands.v.shape[0], pairs.operands.t.shape[0]
    grid = (triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns))
    stride = _stride(columns)
    g = room[: rows * stride].view(rows, stride)
    arguments = {**_arguments(pairs, sums, grid[1]), "stride": stride, "G": g}
    return Launch(slope_block, grid, arguments, _constants(pairs, tile, sums), tile.num_warps, tile.num_stages)


def _arguments(pairs: Pairs, sums: bool, parts: int) -> dict[str, object]:
    operands = pairs.operands
    spans = {
        "VALUES": parts if pairs.loss != "softmax" else 0,
        "SLOPES": parts if pairs.loss != "softmax" else 0,
        "WORK": parts,
    }
    partials = {name: _room(operands, count if sums else 0, operands.v.shape[0]) for name, count in spans.items()}
    return {**operands.arguments, "BIAS": pairs.bias, "SIDEQ": pairs.row_side, "SIDEK": pairs.column_side, **partials}


def _constants(pairs: Pairs, tile: Tile, sums: bool) -> dict[str, object]:
    return {
        **pairs.operands.constants(tile),
        "LOSS": LOSSES[pairs.loss],
        "GAIN": gain(pairs.operands.v.dtype),
        "SUMS": sums,
    }


def _room(operands: Operands, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=operands.v.device)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32. Half-precision results would round every block of the sum over the batch."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
