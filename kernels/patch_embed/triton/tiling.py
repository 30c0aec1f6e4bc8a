"""Tile sizes of the fused patch embedding, chosen from compiler output for sm_90 and sm_80: no spills (`variants`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

STEP = 32
"""Columns per step of the implicit GEMM.

A whole number of tensor-core steps, and little padding for a group of two leads.
"""
CHUNK = 256
"""Widths above this are made in chunks, LayerNorm in two steps."""
WIDEST = 1024
DISPATCHED_WIDTHS = range(128, WIDEST + 1, 16)
"""Rows of other widths cannot be read 16 bytes at a time; they run when asked for by name."""
SIGNAL_TYPES = (torch.int16, torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Tiling:
    """tokens x width of one program's accumulator, its warps and pipeline stages."""

    tokens: int
    width: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tilings:
    """One tiling per kernel. weight: `tokens` is the summed axis; its accumulator is STEP x width."""

    forward: Tiling
    backward: Tiling
    weight: Tiling


def tilings(width: int, dtype: torch.dtype, architecture: int) -> Tilings:
    """Tile sizes for a width, the type of the weights, and 10 x compute capability.

    The forward holds one accumulator and fits 64 tokens, what a wgmma needs; the backward holds three tensors of that
    size besides the vectors' sums and fits 32. A width made in chunks anyway takes narrower ones there. float32 splits
    every operand in two and fits half of each. In half precision the fastest of ten, eight and seven on an H100 at
    widths 256 and 512, among those without spills; the backward of 256 is faster with them (`SPILLS`), there.
    """
    chunk = min(CHUNK, max(16, 1 << (width - 1).bit_length()))
    if dtype == torch.float32:
        return Tilings(Tiling(32, chunk, 8, 3), Tiling(16, chunk, 8, 2), Tiling(32, chunk, 8, 2))
    in_backward = chunk if width <= CHUNK else CHUNK // 2
    warps = 4 if architecture >= 90 else 8
    return Tilings(Tiling(64, chunk, 8, 2), Tiling(32, in_backward, warps, 3), Tiling(64, chunk, 8, 3))


SPILLS = "a backward pass of width 256 takes 3.33 ms of an H100 with these spills, 4.23 ms with 8 warps and none"


def precision() -> str:
    """`tl.dot` precision of float32: tf32 where PyTorch may use it as well.

    Else three tf32 products (float32 accuracy on tensor cores).
    """
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
