"""The Triton tiles give the sums and gradients of the plain tiles, held against float64 through the interpreter: no GPU is needed.

Rounding the weights H to the type of the embeddings is the one liberty the kernels take in half precision. So the yardstick of a gradient
is what that rounding alone costs, of everything else the plain path in the same type; an error may be twice the yardstick plus a floor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from kernels.contrastive_chunked import block_gradients, block_sums
from kernels.contrastive_triton import triton_block_gradients, triton_block_sums
from kernels.similarity import NegativeTiles, NegativeWeights, Similarity
from tests.kernels.interpreter import interpreted
from tests.kernels.test_contrastive import Case

RAMP = NegativeWeights("ramp", low=0.2, high=0.8)
EXPONENTIAL = NegativeWeights("exponential", 0.1, 0.7, gamma=3.0)
PLAIN = NegativeWeights("none", drop_duplicates=False)
FLOOR = 2e-6
"""Relative; a float32 logit of 200 is known to 1e-5, and both paths lose that in their own order."""


class Setting(NamedTuple):
    """A batch and how it is cut: the first rows of `sizes` against all, and how many programs a launch may have (1: long loops)."""

    sizes: tuple[int, ...]
    width: int
    dtype: torch.dtype
    weights: NegativeWeights = RAMP
    kind: str = "cosine"
    tau: float = 0.07
    programs: int = 1


def _case(setting: Setting) -> tuple[Case, Case]:
    rounded = Case(sum(setting.sizes), setting.width, setting.tau).in_dtype(setting.dtype)
    return rounded, rounded.in_dtype(torch.float64)


def _tiles(case: Case, setting: Setting, rows: slice, dtype: torch.dtype) -> NegativeTiles:
    everything = case.similarity(setting.kind).with_dtype(dtype)
    features, key = everything.features, everything.duplicate_key
    assert key is not None
    mine = Similarity(everything.kind, None if features is None else features[rows], key[rows])
    return NegativeTiles(mine, everything, setting.weights, row_offset=rows.start)


def _limit_launches(programs: int) -> None:
    """Small limits, so that a small batch has several launches, spans and blocks."""
    from kernels import contrastive_triton_backward as backward
    from kernels import contrastive_triton_forward as forward

    forward.PROGRAMS = backward.PROGRAMS = programs
    forward.PARTIAL_BYTES = 0
    backward.BLOCK_SIDE = 64


def _measure(setting: Setting) -> dict[str, tuple[float, float]]:
    """Error and yardstick of every result, over the row blocks of `sizes` one after the other."""
    _limit_launches(setting.programs)
    # Memory that nobody wrote is NaN: an output or a partial that is read before it is written cannot pass.
    torch.use_deterministic_algorithms(True)
    rounded, exact = _case(setting)
    scale = rounded.log_scale.float().exp().reshape(())
    results: dict[str, list[list[torch.Tensor]]] = {name: [[], [], []] for name in ("rows", "columns", "alpha", "d_v", "d_t")}
    start = 0
    for size in setting.sizes:
        rows = slice(start, start + size)
        start += size
        v, t = rounded.ecg[rows], rounded.text
        v64, t64, scale64 = exact.ecg[rows], exact.text, scale.double()
        tiles, tiles64 = _tiles(rounded, setting, rows, torch.float32), _tiles(exact, setting, rows, torch.float64)
        truth = block_sums(v64, t64, scale64, tiles64, 64)
        pairs = (v64 * t64[rows]).sum(1) * scale64
        row_lse = torch.logaddexp(truth.rows, pairs)
        column_lse = torch.maximum(truth.columns, torch.full_like(truth.columns, -50.0))
        column_lse[rows] = torch.logaddexp(column_lse[rows], pairs)
        d_v, d_t = block_gradients(v64, t64, scale64, tiles64, row_lse, column_lse, 64)
        fused = triton_block_sums(v, t, scale, tiles, 64)
        gradients = triton_block_gradients(v, t, scale, tiles, row_lse.float(), column_lse.float(), 64)
        again = (
            *triton_block_sums(v, t, scale, tiles, 64),
            *triton_block_gradients(v, t, scale, tiles, row_lse.float(), column_lse.float(), 64),
        )
        assert all(
            torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
            for a, b in zip((*fused, *gradients), again, strict=True)
        )
        assert fused.rows.dtype == gradients[0].dtype == torch.float32
        plain = block_sums(v, t, scale, tiles, 64)
        h = _weights(v64, t64, scale64, tiles64, row_lse, column_lse).to(setting.dtype).double()
        plain_gradients = block_gradients(v, t, scale, tiles, row_lse.float(), column_lse.float(), 64)
        yardstick = (h @ t64, h.T @ v64) if setting.dtype != torch.float32 else plain_gradients
        for name, *values in zip(results, (*fused, *gradients), (*plain, *yardstick), (*truth, d_v, d_t), strict=True):
            for place, value in zip(results[name], values, strict=True):
                place.append(value.double())
    return {name: (_error(ours, truth), _error(plain, truth)) for name, (ours, plain, truth) in results.items()}


def _weights(v: torch.Tensor, t: torch.Tensor, scale: torch.Tensor, tiles: NegativeTiles, row_lse: Any, column_lse: Any) -> torch.Tensor:
    s = v @ t.T * scale
    alpha = tiles.alpha(slice(0, len(v)), slice(0, len(t)))
    alpha = torch.ones_like(s) if alpha is None else alpha
    alpha.diagonal(tiles.row_offset).zero_()
    return alpha * ((s - row_lse[:, None]).exp() + (s - column_lse[None, :]).exp())


def _error(values: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    a, b = torch.cat([value.flatten() for value in values]), torch.cat([value.flatten() for value in truth])
    assert torch.equal(a.isinf(), b.isinf())
    a, b = a[b.isfinite()], b[b.isfinite()]
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


SETTINGS = [
    Setting((150,), 24, torch.float32),
    Setting((150,), 24, torch.float32, EXPONENTIAL, tau=0.005, programs=4),
    Setting((70,), 33, torch.float32, PLAIN, "none", tau=1.0),
    Setting((70,), 33, torch.float32, RAMP, "none"),
    Setting((67,), 300, torch.float32, tau=0.01, programs=8),
    Setting((50, 13, 77), 40, torch.float32),
    Setting((140,), 64, torch.bfloat16),
    Setting((140,), 64, torch.bfloat16, EXPONENTIAL, tau=0.01, programs=4),
    Setting((140,), 37, torch.bfloat16, PLAIN, "none", tau=0.005),
    Setting((60, 5, 75), 264, torch.bfloat16, tau=0.02),
    Setting((140,), 64, torch.float16, EXPONENTIAL),
    Setting((130,), 270, torch.float16, RAMP, tau=1.0),
    Setting((1, 2, 3), 17, torch.float32),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s.sizes}-{s.width}-{str(s.dtype)[6:]}-{s.weights.form}-{s.kind}-{s.tau}")
def test_sums_and_gradients_against_float64(setting: Setting) -> None:
    for name, (ours, yardstick) in interpreted(_measure, setting).items():
        assert ours <= 2 * yardstick + FLOOR, f"{name}: {ours:.1e}, yardstick {yardstick:.1e}"
