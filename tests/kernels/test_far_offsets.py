"""Past the 2^31st element kernels read and write what they mean: offsets are 64-bit where a tensor may be that long.

The tensors are as long as they say, but memory that nobody touches costs address space only; of every launch only the
last program runs. Operands lie in the upper half of their storage, so an offset that wraps around finds zeros there
instead of the end of the process.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cardialign.kernels.contrastive import NegativeWeights, Similarity, SoftTargets
from cardialign.kernels.contrastive.similarity import NegativeTiles
from cardialign.kernels.contrastive.soft_targets import TargetTiles
from tests.support.kernels.far_memory import StoppedError, far_tensor, last_program_of_every_launch
from tests.support.kernels.interpreter import interpreted

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sysconf") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 12 << 30,
    reason="Linux refuses single allocations beyond the memory of the machine",
)
WIDTH = 256
FAR = (1 << 31) // WIDTH + 1000


def _side(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, similarity features, keys and what a loss knows of a row.

    Only the last 300 rows exist where there are more.
    """
    generator = torch.Generator().manual_seed(seed)
    few = min(rows, 300)
    v, features = (F.normalize(torch.randn(few, WIDTH, generator=generator), dim=1) for _ in range(2))
    side = 3 + torch.rand(few, generator=generator)
    made = v.bfloat16(), features.half(), torch.arange(few) % 7, side
    return made if rows == few else tuple(far_tensor(each, rows, *each.shape[1:]) for each in made)  # type: ignore[return-value]


def _last_program(kernel: str, rows: int, columns: int) -> list[bool]:
    """Whether the last program gives the bits that it gives where rows and columns begin with its own tile."""
    from cardialign.kernels.contrastive.triton import gradients as backward
    from cardialign.kernels.contrastive.triton import sums as forward
    from cardialign.kernels.contrastive.triton.operands import Operands

    forward.PROGRAMS = backward.PROGRAMS = 1 << 30  # a program has one tile
    backward.BLOCK_SIDES = (4096, 4096)
    (v, row_features, row_key, row_side), (t, column_features, column_key, column_side) = (
        _side(rows, 0),
        _side(columns, 1),
    )
    known = Similarity("cosine", row_features, row_key), Similarity("cosine", column_features, column_key)
    scale = torch.tensor(5.0)
    tiles: NegativeTiles | TargetTiles = TargetTiles(*known, SoftTargets("ramp", low=-0.2), rows)
    if kernel == "log sums":
        tiles = NegativeTiles(*known, NegativeWeights("ramp", low=-0.2), rows)
    pairs = backward.Pairs(Operands.of(v, t, scale, tiles), "logistic", row_side, column_side, scale)

    def launched(pairs: backward.Pairs) -> Any:
        if kernel == "log sums":
            return forward.forward_launch(pairs.operands, forward.forward_tile(v.dtype))
        if kernel == "target sums":
            return forward.match_launch(pairs.operands, forward.match_tile(v.dtype))
        if kernel == "fused gradient":
            return backward.fused_launch(pairs, sums=True)
        tile = backward.slope_tile(pairs, 90)
        b, n = pairs.operands.v.shape[0], pairs.operands.t.shape[0]
        return backward.slope_launch(pairs, torch.empty(b * (n + 64), dtype=v.dtype), tile, sums=True)

    whole = launched(pairs)
    m, n = whole.constants["M"], whole.constants["N"]
    first_row, first_column = (rows - 1) // m * m, (columns - 1) // n * n
    near = launched(pairs.block(slice(first_row, rows), slice(first_column, columns)))
    with last_program_of_every_launch():
        whole.run()
        near.run()
    equal = []
    for name in whole.arguments.keys() & {
        "ROW_PARTIAL",
        "ALPHA_PARTIAL",
        "ROW_MASS",
        "ROW_WORK",
        "PARTIAL",
        "VALUES",
        "SLOPES",
    }:
        equal.append(torch.equal(whole.arguments[name][-1, first_row:], near.arguments[name][-1]))
    for name in whole.arguments.keys() & {"COLUMN_PARTIAL", "COLUMN_MASS", "COLUMN_WORK"}:
        equal.append(torch.equal(whole.arguments[name][-1, first_column:], near.arguments[name][-1]))
    if "G" in whole.arguments:
        equal.append(
            torch.equal(
                whole.arguments["G"][first_row:, first_column:columns], near.arguments["G"][:, : columns - first_column]
            )
        )
    return [*equal, max(v.numel(), t.numel()) > 1 << 31]


@pytest.mark.parametrize(
    ("kernel", "rows", "columns"),
    [
        ("log sums", FAR, 40),
        ("log sums", 70, FAR),
        ("target sums", FAR, 40),
        ("target sums", 70, FAR),
        ("fused gradient", FAR, 40),
        ("fused gradient", 70, FAR),
        ("slopes", FAR, 300),
    ],
)
def test_tiles_of_the_loss_far_from_the_start(kernel: str, rows: int, columns: int) -> None:
    found = interpreted(_last_program, kernel, rows, columns)
    assert len(found) > 2 and all(found), found


RECORDS, LEADS, SAMPLES, TOKENS, WIDE = 32800, 12, 5500, 64, 1024


def _patches(signal: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    """What the last program of each kernel makes of the last record.

    Tokens, moments, and from the backward the ends of both intermediates.
    """
    from cardialign.kernels.patch_embed import PatchScaleParams
    from cardialign.kernels.patch_embed.triton import backend as fused
    from cardialign.kernels.patch_embed.triton.tiling import STEP

    fused.PROGRAMS, fused.MOST_SPLITS = 1, len(signal)  # a program of the backward has one record
    fused.WEIGHT_PROGRAMS = 1 << 30
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return (0.3 * torch.randn(*shape, generator=generator)).bfloat16().requires_grad_()

    vectors = [normal(1, WIDE) for _ in range(3)]
    scale = PatchScaleParams(32, 86, [normal(WIDE, 2, 32)], *vectors, normal(LEADS, WIDE))
    present = torch.ones(signal.shape[:2], dtype=torch.bool)
    with last_program_of_every_launch(stop_before="patch_embed_sum_partials") as launches:
        (tokens,) = fused.patch_embed_triton(signal, present, None, [scale], [(11, 3)])
        with pytest.raises(StoppedError):
            tokens.backward(grad)
    moments = launches["patch_embed_forward"]["moment_ptr"]
    product_grad = launches["patch_embed_backward_tokens"]["product_grad_ptr"]
    partial = launches["patch_embed_backward_weight"]["partial_ptr"]
    written = slice(WIDE - 128, WIDE)  # by the last of the programs that share the width
    assert tokens.shape[2] == TOKENS and len(partial) == len(signal)
    return [tokens.detach()[-1, 0], moments[-TOKENS:], product_grad[-1, 0, :, written], partial[-1, written, -STEP:]]


def _last_record() -> list[bool]:
    generator = torch.Generator().manual_seed(0)
    signal = far_tensor(torch.randn(1, LEADS, SAMPLES, generator=generator).half(), RECORDS, LEADS, SAMPLES)
    grad = far_tensor(torch.randn(1, 1, TOKENS, WIDE, generator=generator).bfloat16(), RECORDS, 1, TOKENS, WIDE)
    far, near = _patches(signal, grad), _patches(signal[-1:].clone(), grad[-1:].clone())
    assert all(float(values.float().norm()) > 0 for values in near)
    return [torch.equal(a, b) for a, b in zip(far, near, strict=True)] + [min(signal.numel(), grad.numel()) > 1 << 31]


@pytest.mark.slow
def test_patches_of_a_record_far_from_the_start() -> None:
    assert all(interpreted(_last_record))
