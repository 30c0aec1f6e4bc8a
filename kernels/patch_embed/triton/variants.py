"""Every specialisation of the fused patch embedding that may be launched, for a machine without a GPU."""

from __future__ import annotations

from typing import Any

import torch

from cardialign.kernels.patch_embed.triton import backward
from cardialign.kernels.patch_embed.triton.forward import patch_embed_forward
from cardialign.kernels.patch_embed.triton.tiling import CHUNK, SPILLS, STEP, Tiling, precision, tilings
from cardialign.kernels.triton_support.launch import Variant

TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16"}
TABLES = ("offset_ptr", "lead_ptr", "tile_ptr", "block_ptr", "group_ptr", "chunk_ptr")
FLOATS = ("affine_ptr", "moment_ptr", "sum_ptr", "part_ptr", "partial_ptr")


def compile_variants() -> list[Variant]:
    """One chunk and several, the last partly used; raw counts; Hopper and Ampere.

    Other dispatched widths compile to the same tiles. float32 weights are not dispatched and not listed: three tf32
    products on tensor cores, without spills when last looked at.
    """
    variants = []
    for width in (128, 256, 384):
        variants += _kernels(width, torch.bfloat16, "*bf16", 90)
    for width in (256, 768):
        variants += _kernels(width, torch.bfloat16, "*bf16", 80)
    return variants + _kernels(256, torch.float16, "*i16", 90)


def _kernels(width: int, dtype: torch.dtype, signal: str, architecture: int) -> list[Variant]:
    chosen = tilings(width, dtype, architecture)
    kernels: list[tuple[Any, Tiling]] = [
        (patch_embed_forward, chosen.forward),
        (backward.patch_embed_backward_tokens, chosen.backward),
    ]
    if width > chosen.backward.width:
        kernels.append((backward.patch_embed_backward_rows, chosen.backward))
    kernels.append((backward.patch_embed_backward_weight, chosen.weight))
    return [_variant(kernel, tiling, width, dtype, signal, architecture) for kernel, tiling in kernels]


def _variant(kernel: Any, tiling: Tiling, width: int, dtype: torch.dtype, signal: str, architecture: int) -> Variant:
    constants = {
        "LEADS": 12,
        "D": width,
        "DC": tiling.width,
        "BT": tiling.tokens,
        "BF": STEP,
        "AFFINE": signal == "*i16",
        "PRECISION": precision(),
    }

    def type_of(name: str) -> str:
        if name == "signal_ptr":
            return signal
        if name == "present_ptr":
            return "*u8"
        if name == "eps":
            return "fp32"
        if name in TABLES:
            return "*i32"
        if name in FLOATS:
            return "*fp32"
        return TYPES[dtype] if name.endswith("_ptr") else "i32"

    names = [name for name in kernel.arg_names if name not in constants]
    # wgmma takes 64 rows at a time: tokens in the products, widths in the weight gradient.
    # Fewer rows, and Ampere, use mma.
    rows = tiling.width if kernel is backward.patch_embed_backward_weight else tiling.tokens
    hopper = architecture == 90 and rows >= 64
    hopper_wide = architecture == 90 and tiling.width == CHUNK
    kind = kernel.__name__.removeprefix("patch_embed_").replace("_", " ")
    return Variant(
        name=f"patches {kind} d={width} {str(dtype).removeprefix('torch.')} from {signal[1:]}",
        kernel=kernel,
        types={name: type_of(name) for name in names},
        constants=constants,
        architecture=architecture,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        multiplies_with="HGMMA" if hopper else "HMMA",
        aligned=("columns", "scale_columns"),
        spills=SPILLS if kernel is backward.patch_embed_backward_tokens and hopper_wide else "",
    )
