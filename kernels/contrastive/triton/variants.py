"""The launches of the loss kernels that stand for all, for the compile check on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cardialign.kernels.contrastive.similarity import NegativeTiles, NegativeWeights, Similarity
from cardialign.kernels.contrastive.soft_targets import SoftTargets, TargetTiles
from cardialign.kernels.contrastive.triton.gradients import Pairs, fused_launch, is_fused, slope_launch, slope_tile
from cardialign.kernels.contrastive.triton.operands import Operands
from cardialign.kernels.contrastive.triton.sums import forward_launch, forward_tile, match_launch, match_tile
from cardialign.kernels.triton_support.launch import Instruction, Launch, Variant

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
VARIANTS: tuple[tuple[int, torch.dtype, int, str, str, str, str], ...] = (
    (90, BF16, 256, "softmax", "cosine", "ramp", "forward gradient"),
    (90, BF16, 512, "softmax", "cosine", "ramp", "gradient"),
    (90, BF16, 512, "softmax", "cosine", "exponential", "forward gradient"),
    (90, FP16, 200, "softmax", "cosine", "none", "gradient"),
    (90, FP32, 256, "softmax", "cosine", "ramp", "forward gradient"),
    (80, BF16, 256, "softmax", "cosine", "ramp", "forward gradient"),
    (80, BF16, 512, "softmax", "cosine", "ramp", "gradient"),
    (90, BF16, 256, "softmax", "jaccard", "ramp", "forward gradient"),
    (90, BF16, 512, "softmax", "jaccard", "ramp", "gradient"),
    (90, BF16, 256, "targets", "cosine", "ramp", "forward gradient"),
    (90, BF16, 512, "targets", "jaccard", "sigmoid", "gradient"),
    (90, BF16, 256, "logistic", "cosine", "ramp", "gradient"),
    (90, BF16, 512, "logistic", "jaccard", "sigmoid", "gradient"),
    (90, BF16, 512, "logistic", "cosine", "none", "forward"),
    (90, BF16, 256, "absolute", "jaccard", "identity", "gradient"),
    (90, FP32, 256, "logistic", "jaccard", "sigmoid", "gradient"),
    (90, FP32, 512, "logistic", "jaccard", "sigmoid", "gradient"),
    (80, BF16, 256, "targets", "cosine", "ramp", "forward"),
    (80, BF16, 256, "logistic", "jaccard", "sigmoid", "gradient"),
    (80, BF16, 512, "logistic", "jaccard", "sigmoid", "gradient"),
)
"""Architecture, type, width, loss, similarity, form and passes: both ways of the backward pass, both architectures,
every loss, the costliest forms and similarities, an odd width."""


def compile_variants() -> Iterator[Variant]:
    """The variants, in the order of the table."""
    for architecture, dtype, width, loss, kind, form, passes in VARIANTS:
        pairs = _shapes_only(dtype, width, loss, kind, form)
        instruction: Instruction = "FFMA" if dtype == FP32 else "HGMMA" if architecture == 90 else "HMMA"
        label = f"d={width} {str(dtype)[6:]} {'' if kind == 'cosine' else kind + ' '}{form}"
        name = "loss" if loss == "softmax" else f"loss {loss}"
        if "forward" in passes:
            yield _forward(pairs).variant(f"{name} forward {label}", architecture, instruction)
        if "gradient" in passes:
            sums = loss != "targets" and (loss != "softmax" or dtype != FP32)
            if is_fused(width, dtype):
                launch, way = fused_launch(pairs, sums), "fused"
            else:
                room = torch.empty(pairs.operands.v.shape[0] ** 2, dtype=dtype, device="meta")
                launch, way = slope_launch(pairs, room, slope_tile(pairs, architecture), sums), "strips"
            yield launch.variant(f"{name} gradient {label}, {way}", architecture, instruction)


def _forward(pairs: Pairs) -> Launch:
    dtype = pairs.operands.v.dtype
    if pairs.loss == "softmax":
        return forward_launch(pairs.operands, forward_tile(dtype, pairs.operands.jaccard))
    return (
        match_launch(pairs.operands, match_tile(dtype))
        if pairs.loss == "targets"
        else fused_launch(pairs, sums=True, gradient=False)
    )


def _shapes_only(
    dtype: torch.dtype, width: int, loss: str, kind: str, form: str, similarity_width: int = 128, batch: int = 4096
) -> Pairs:
    """A launch's worth without storage, with duplicate keys."""
    rows = torch.empty((batch, width), dtype=dtype, device="meta")
    reports = Similarity(kind, rows.new_empty((batch, similarity_width)), rows.new_empty(batch, dtype=torch.int64))  # type: ignore[arg-type]
    tiles: NegativeTiles | TargetTiles
    if loss == "softmax":
        tiles = NegativeTiles(reports, reports, NegativeWeights(form))  # type: ignore[arg-type]
    else:
        tiles = TargetTiles(reports, reports, SoftTargets(form))  # type: ignore[arg-type]
    number: Tensor = rows.new_empty((), dtype=torch.float32)
    side = rows.new_empty(batch, dtype=torch.float32)
    return Pairs(Operands.of(rows, rows, number, tiles), loss, side, side, number)
