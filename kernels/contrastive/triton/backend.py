"""Triton tiles of the loss family: the contracts of `torch_softmax` and `torch_pointwise`, for GPUs.

Importing this module needs no triton; the kernels are imported by the first call. Values are held against float64
through Triton's interpreter, and compiled where there is a GPU; registers and spills are read from what the compiler
makes (`cardialign bench compile`).
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from cardialign.kernels.contrastive.blocks import BlockGradients, Blocks, BlockSums, BlockTerms, Judge, TargetSums
from cardialign.kernels.contrastive.similarity import NegativeTiles
from cardialign.kernels.contrastive.soft_targets import TargetTiles
from cardialign.kernels.contrastive.torch_pointwise import block_terms
from cardialign.kernels.contrastive.torch_softmax import (
    block_gradients,
    block_sums,
    subtract_target_gradients,
    target_sums,
)
from cardialign.kernels.contrastive.triton.operands import Operands
from cardialign.kernels.triton_support.launch import architecture_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def available(device: torch.device) -> bool:
    """Whether the kernels can run on tensors of this device.

    CUDA of capability 8.0 or newer, or any under TRITON_INTERPRET=1; nowhere without triton.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cuda":
        return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _interpreted()


def supports(v: Tensor, t: Tensor) -> bool:
    """Whether the kernels take these operands: one type of float32, bfloat16, float16, and no empty shard.

    float64 is left to the plain path.
    """
    return v.dtype == t.dtype and v.dtype in DTYPES and v.shape[0] > 0 and t.shape[0] > 0


def triton_block_sums(v: Tensor, t: Tensor, scale: Tensor, tiles: NegativeTiles, chunk: int) -> BlockSums:
    """`block_sums` in one pass on the GPU; operands the kernels do not take go through the plain path.

    v: (b, d). t: (n, d). scale: 0-dim float32.
    tiles: row_offset may be negative or past the last column.
    chunk: bounds nothing here; at most 64 MiB of partial sums exist beside the results.
    """
    if not supports(v, t):
        return block_sums(v, t, scale, tiles, chunk)
    from cardialign.kernels.contrastive.triton.sums import log_sums

    rows, columns, alpha = log_sums(Operands.of(v, t, scale, tiles))
    if tiles.trivial:
        alpha = alpha.new_full((), tiles.others(len(v), len(t)))
    return BlockSums(rows, columns, alpha)


def triton_block_gradients(
    v: Tensor, t: Tensor, scale: Tensor, tiles: NegativeTiles, row_lse: Tensor, column_lse: Tensor, chunk: int
) -> BlockGradients:
    """`block_gradients` on the GPU, float32; operands the kernels do not take go through the plain path.

    row_lse (b,), column_lse (n,): must include the positives; a weight e^(s - R) above 1 is taken for rounding and cut
    to 1.
    chunk: bounds nothing here; beside the results at most a 16,384 x 8,192 block of slopes exists (strips), or partial
    sums of a few hundred row blocks.
    """
    if not supports(v, t):
        return block_gradients(v, t, scale, tiles, row_lse, column_lse, chunk)
    from cardialign.kernels.contrastive.triton.gradients import Pairs, gradients

    operands = Operands.of(v, t, scale, tiles)
    pairs = Pairs(operands, "softmax", _side(row_lse), _side(column_lse), operands.scale)
    # float32 slopes are not rounded, and their kernel has no registers to spare.
    d_v, d_t, sums = gradients(pairs, v.dtype != torch.float32, architecture_of(v.device))
    work = (v * d_v).sum(dtype=torch.float64) if sums is None else sums.work
    return BlockGradients(d_v, d_t, work * scale)


def triton_target_sums(v: Tensor, t: Tensor, scale: Tensor, tiles: TargetTiles, chunk: int) -> TargetSums:
    """`target_sums` in one pass on the GPU, float32; operands the kernels do not take go through the plain path."""
    if not supports(v, t):
        return target_sums(v, t, scale, tiles, chunk)
    from cardialign.kernels.contrastive.triton.sums import match_totals

    return match_totals(Operands.of(v, t, scale, tiles))


def triton_subtract_target_gradients(
    d_v: Tensor,
    d_t: Tensor,
    v: Tensor,
    t: Tensor,
    tiles: TargetTiles,
    row_share: Tensor,
    column_share: Tensor,
    chunk: int,
) -> None:
    """`subtract_target_gradients` on the GPU: no logits are made again.

    Operands the kernels do not take go through the plain path.
    """
    if not supports(v, t):
        subtract_target_gradients(d_v, d_t, v, t, tiles, row_share, column_share, chunk)
        return
    from cardialign.kernels.contrastive.triton.gradients import Pairs, gradients

    unused = row_share.new_ones(())
    pairs = Pairs(Operands.of(v, t, unused, tiles), "targets", _side(row_share), _side(column_share), unused)
    of_rows, of_columns, _ = gradients(pairs, False, architecture_of(v.device))
    d_v += of_rows
    d_t += of_columns


def triton_block_terms(
    judge: Judge, v: Tensor, t: Tensor, tiles: TargetTiles, gradients: bool, chunk: int
) -> BlockTerms:
    """`block_terms` on the GPU, gradients in float32; operands the kernels do not take go through the plain path."""
    if not supports(v, t):
        return block_terms(judge, v, t, tiles, gradients, chunk)
    from cardialign.kernels.contrastive.triton.gradients import Pairs, evaluated
    from cardialign.kernels.contrastive.triton.gradients import gradients as gradients_of

    form, scale, bias, own = judge
    # The own target of a column is that of the row it matches;
    # columns that match no row here have none, and it is not read.
    of_columns = own.new_zeros(t.shape[0])
    first, stop = max(0, tiles.row_offset), min(t.shape[0], tiles.row_offset + v.shape[0])
    if first < stop:
        of_columns[first:stop] = own[first - tiles.row_offset : stop - tiles.row_offset]
    pairs = Pairs(Operands.of(v, t, scale, tiles), form, _side(own), _side(of_columns), _side(bias))
    if not gradients:
        sums = evaluated(pairs)
        return BlockTerms(sums.values, sums.slopes, torch.zeros_like(sums.work), None, None)
    d_v, d_t, found = gradients_of(pairs, True, architecture_of(v.device))
    assert found is not None
    return BlockTerms(found.values, found.slopes, found.work * scale, d_v, d_t)


TRITON = Blocks(
    triton_block_sums, triton_block_gradients, triton_target_sums, triton_subtract_target_gradients, triton_block_terms
)


def _side(values: Tensor) -> Tensor:
    return values.detach().float().contiguous()


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)
