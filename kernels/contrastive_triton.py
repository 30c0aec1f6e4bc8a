"""Triton tiles of the contrastive loss: the same contracts as `block_sums` and `block_gradients` of `contrastive_chunked`, for GPUs.

Importing this module needs no triton; the kernels are imported by the first call. Not measured on a GPU: values are held against float64
through Triton's interpreter, registers and spills are read from what the compiler makes (`cardialign bench compile`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.compile_check import Instruction, Variant
from kernels.contrastive_chunked import BlockSums, block_gradients, block_sums
from kernels.contrastive_triton_operands import Operands
from kernels.similarity import NegativeTiles, NegativeWeights, Similarity

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def available(device: torch.device) -> bool:
    """Whether the kernels can run on tensors of this device: CUDA of capability 8.0 or newer, or any under TRITON_INTERPRET=1."""
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cuda":
        return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _interpreted()


def supports(v: Tensor, t: Tensor, tiles: NegativeTiles) -> bool:
    """Whether the kernels take these operands: one type of float32, bfloat16, float16, and cosine similarity or none.

    float64 and Jaccard similarity are left to the plain path.
    """
    weighted = tiles.rows.kind != "none" and tiles.weights.form != "none"
    return v.dtype == t.dtype and v.dtype in DTYPES and (not weighted or tiles.rows.kind == "cosine")


def triton_block_sums(v: Tensor, t: Tensor, scale: Tensor, tiles: NegativeTiles, chunk: int) -> BlockSums:
    """`block_sums` in one pass on the GPU; operands the kernels do not take go through the plain path.

    v (b, d), t (n, d), scale 0-dim float32; tiles.row_offset may be negative or past the last column. `chunk` bounds nothing here: at most 64 MiB of partial sums exist beside the results.
    """
    if not supports(v, t, tiles) or v.shape[0] == 0 or t.shape[0] == 0:
        return block_sums(v, t, scale, tiles, chunk)
    from kernels.contrastive_triton_forward import log_sums

    rows, columns, alpha = log_sums(Operands.of(v, t, scale, tiles))
    if tiles.trivial:
        positives = min(v.shape[0], t.shape[0] - tiles.row_offset) - max(0, -tiles.row_offset)
        alpha = alpha.new_full((), v.shape[0] * t.shape[0] - max(0, positives))
    return BlockSums(rows, columns, alpha)


def triton_block_gradients(
    v: Tensor, t: Tensor, scale: Tensor, tiles: NegativeTiles, row_lse: Tensor, column_lse: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """`block_gradients` on the GPU, float32; operands the kernels do not take go through the plain path.

    row_lse (b,), column_lse (n,) must include the positives: a weight e^(s - R) above 1 is taken for rounding and cut to 1. `chunk` bounds
    nothing here: beside the results at most a 4096 x 4096 block of H exists (d > 256), or partial sums of a few hundred row blocks.
    """
    if not supports(v, t, tiles) or v.shape[0] == 0 or t.shape[0] == 0:
        return block_gradients(v, t, scale, tiles, row_lse, column_lse, chunk)
    from kernels.contrastive_triton_backward import gradients

    return gradients(Operands.of(v, t, scale, tiles), row_lse, column_lse, architecture_of(v.device))


def architecture_of(device: torch.device) -> int:
    """10 x compute capability; the interpreter is given Hopper's tiles."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def compile_variants() -> Iterator[Variant]:
    """The launches that stand for all: both passes, both backward ways, both architectures, every type and form of alpha, an odd width."""
    from kernels import contrastive_triton_backward as backward
    from kernels.contrastive_triton_forward import forward_launch, forward_tile

    for architecture, dtype, width, form, passes in (
        (90, torch.bfloat16, 256, "ramp", "forward gradient"),
        (90, torch.bfloat16, 512, "ramp", "gradient"),
        (90, torch.bfloat16, 512, "exponential", "forward"),
        (90, torch.float16, 200, "none", "gradient"),
        (90, torch.float32, 256, "ramp", "forward gradient"),
        (80, torch.bfloat16, 256, "ramp", "forward gradient"),
        (80, torch.bfloat16, 512, "ramp", "gradient"),
    ):
        operands = _shapes_only(dtype, width, form)
        instruction: Instruction = "FFMA" if dtype == torch.float32 else "HGMMA" if architecture == 90 else "HMMA"
        label = f"d={width} {str(dtype)[6:]} {form}"
        if "forward" in passes:
            launch = forward_launch(operands, forward_tile(dtype))
            yield launch.variant(f"loss forward {label}", architecture, instruction)
        if "gradient" in passes:
            lse = operands.v.new_empty(operands.v.shape[0], dtype=torch.float32)
            if backward.is_fused(width):
                launch, way = backward.fused_launch(operands, lse, lse, backward.fused_tile(dtype)), "fused"
            else:
                room = torch.empty(operands.v.shape[0] ** 2, dtype=dtype, device="meta")
                launch, way = backward.pull_launch(operands, lse, lse, room, backward.pull_tile(dtype, architecture)), "strips"
            yield launch.variant(f"loss gradient {label}, {way}", architecture, instruction)


def _shapes_only(dtype: torch.dtype, width: int, form: str, similarity_width: int = 128, batch: int = 4096) -> Operands:
    """Operands without storage, with duplicate keys."""
    rows = torch.empty((batch, width), dtype=dtype, device="meta")
    similarity = Similarity("cosine", rows.new_empty((batch, similarity_width)), rows.new_empty(batch, dtype=torch.int64))
    tiles = NegativeTiles(similarity, similarity, NegativeWeights(form))  # type: ignore[arg-type]
    return Operands.of(rows, rows, rows.new_empty((), dtype=torch.float32), tiles)
