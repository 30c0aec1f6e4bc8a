"""The Triton tiles give the sums and gradients of the plain tiles: no GPU is needed.

Held against float64 through the interpreter. Rounding the weights H to the type of the embeddings is the one liberty
the kernels take in half precision. So the yardstick of a gradient is what that rounding alone costs, of everything else
the plain path in the same type; an error may be twice the yardstick plus a floor.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch

from cardialign.kernels.contrastive.similarity import NegativeTiles, NegativeWeights, Similarity
from cardialign.kernels.contrastive.torch_softmax import block_gradients, block_sums
from cardialign.kernels.contrastive.triton.backend import available, supports, triton_block_gradients, triton_block_sums
from tests.kernels.contrastive.test_losses import Case
from tests.support.kernels.interpreter import Run, interpreted, limit_launches
from tests.support.soak import long_form

RAMP = NegativeWeights("ramp", low=0.2, high=0.8)
EXPONENTIAL = NegativeWeights("exponential", 0.1, 0.7, gamma=3.0)
PLAIN = NegativeWeights("none", drop_duplicates=False)
FLOOR = 2e-6
"""Relative; a float32 logit of 200 is known to 1e-5, and both paths lose that in their own order."""


def floor(run: Run, tau: float) -> float:
    """On a GPU the whole 2^-24 of the largest logit: products are added in another order than PyTorch's there."""
    return FLOOR if run is interpreted else max(FLOOR, 2**-24 / tau)


class Setting(NamedTuple):
    """A batch and how it is cut: the first rows of `sizes` against all.

    programs: how many programs a launch may have (1: long loops).
    """

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


def _measure(setting: Setting) -> dict[str, tuple[float, float]]:
    """Error and yardstick of every result, over the row blocks of `sizes` one after the other."""
    limit_launches(setting.programs)
    # Memory that nobody wrote is NaN: an output or a partial that is read before it is written cannot pass.
    torch.use_deterministic_algorithms(True)
    rounded, exact = _case(setting)
    scale = rounded.log_scale.float().exp().reshape(())
    results: dict[str, list[list[torch.Tensor]]] = {
        name: [[], [], []] for name in ("rows", "columns", "alpha", "d_v", "d_t", "work")
    }
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
        expected = block_gradients(v64, t64, scale64, tiles64, row_lse, column_lse, 64)
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
        yardstick = (h @ t64, h.T @ v64, plain_gradients.work) if setting.dtype != torch.float32 else plain_gradients
        for name, *values in zip(results, (*fused, *gradients), (*plain, *yardstick), (*truth, *expected), strict=True):
            for place, value in zip(results[name], values, strict=True):
                place.append(value.double())
    return {
        name: (joint_error(ours, truth), joint_error(plain, truth)) for name, (ours, plain, truth) in results.items()
    }


def _weights(
    v: torch.Tensor, t: torch.Tensor, scale: torch.Tensor, tiles: NegativeTiles, row_lse: Any, column_lse: Any
) -> torch.Tensor:
    s = v @ t.T * scale
    alpha = tiles.alpha(slice(0, len(v)), slice(0, len(t)))
    alpha = torch.ones_like(s) if alpha is None else alpha
    alpha.diagonal(tiles.row_offset).zero_()
    return alpha * ((s - row_lse[:, None]).exp() + (s - column_lse[None, :]).exp())


def joint_error(values: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    """Relative error of the tensors as one, infinities aside, which must be in the same places."""
    a, b = torch.cat([value.flatten() for value in values]), torch.cat([value.flatten() for value in truth])
    assert torch.equal(a.isinf(), b.isinf())
    a, b = a[b.isfinite()], b[b.isfinite()]
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


SETTINGS = [
    Setting((150,), 24, torch.float32),
    long_form(Setting((150,), 24, torch.float32, EXPONENTIAL, tau=0.005, programs=4)),
    Setting((70,), 33, torch.float32, PLAIN, "none", tau=1.0),
    Setting((70,), 33, torch.float32, RAMP, "none"),
    long_form(Setting((67,), 300, torch.float32, tau=0.01, programs=8)),
    long_form(Setting((50, 13, 77), 40, torch.float32)),
    Setting((140,), 64, torch.bfloat16),
    long_form(Setting((140,), 64, torch.bfloat16, EXPONENTIAL, tau=0.01, programs=4)),
    Setting((140,), 37, torch.bfloat16, PLAIN, "none", tau=0.005),
    long_form(Setting((60, 5, 75), 264, torch.bfloat16, tau=0.02)),
    long_form(Setting((140,), 64, torch.float16, EXPONENTIAL)),
    long_form(Setting((130,), 270, torch.float16, RAMP, tau=1.0)),
    Setting((1, 2, 3), 17, torch.float32),
    Setting((50, 13, 27), 24, torch.float32, EXPONENTIAL, "jaccard"),
    Setting((70,), 264, torch.float32, RAMP, "jaccard"),
    Setting((90,), 40, torch.bfloat16, NegativeWeights("exponential", 0.1, 0.25), "jaccard", programs=4),
    Setting((70,), 270, torch.float16, NegativeWeights("ramp", 0.1, 0.5), "jaccard"),
]


@pytest.mark.parametrize(
    "setting", SETTINGS, ids=lambda s: f"{s.sizes}-{s.width}-{str(s.dtype)[6:]}-{s.weights.form}-{s.kind}-{s.tau}"
)
def test_sums_and_gradients_against_float64(triton_run: Run, setting: Setting) -> None:
    for name, (ours, yardstick) in triton_run(_measure, setting).items():
        assert ours <= 2 * yardstick + floor(triton_run, setting.tau), f"{name}: {ours:.1e}, yardstick {yardstick:.1e}"


def _swap_modalities() -> float:
    limit_launches(1)
    case = Case(90, 48).in_dtype(torch.bfloat16)
    scale = case.log_scale.float().exp().reshape(())
    tiles = NegativeTiles(*[case.similarity().with_dtype(torch.float32)] * 2, RAMP)
    one = triton_block_sums(case.ecg, case.text, scale, tiles, 64)
    other = triton_block_sums(case.text, case.ecg, scale, tiles, 64)
    d_v, d_t, work = triton_block_gradients(
        case.ecg, case.text, scale, tiles, one.rows.clamp(min=0), one.columns.clamp(min=0), 64
    )
    d_t2, d_v2, work2 = triton_block_gradients(
        case.text, case.ecg, scale, tiles, other.rows.clamp(min=0), other.columns.clamp(min=0), 64
    )
    pairs = [
        (one.rows, other.columns),
        (one.columns, other.rows),
        (one.alpha, other.alpha),
        (d_v, d_v2),
        (d_t, d_t2),
        (work, work2),
    ]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def test_swapping_modalities_swaps_sums_and_gradients(triton_run: Run) -> None:
    assert triton_run(_swap_modalities) < 1e-3


def _nothing_counts(batch: int, width: int) -> list[bool]:
    case = Case(batch, width).in_dtype(torch.float32)
    scale = case.log_scale.exp().reshape(())
    same = Similarity("none", None, torch.zeros(batch, dtype=torch.int64))
    tiles = NegativeTiles(same, same, RAMP)
    rows, columns, alpha = triton_block_sums(case.ecg, case.text, scale, tiles, 64)
    gradients = triton_block_gradients(case.ecg, case.text, scale, tiles, torch.zeros(batch), torch.zeros(batch), 64)
    minus_infinity = -float("inf")
    return [bool((rows == minus_infinity).all()), bool((columns == minus_infinity).all()), float(alpha) == 0] + [
        bool((gradient == 0).all()) for gradient in gradients
    ]


@pytest.mark.parametrize(("batch", "width"), [(1, 8), (70, 24), (20, 300)])
def test_where_no_pair_counts_sums_are_minus_infinity_and_gradients_zero(
    triton_run: Run, batch: int, width: int
) -> None:
    assert all(triton_run(_nothing_counts, batch, width))


def _poisoned_row(what: str) -> list[list[bool]]:
    limit_launches(1)
    case = Case(40).in_dtype(torch.float32)
    getattr(case, what)[3, 0] = float("nan")
    scale = case.log_scale.exp().reshape(())
    tiles = NegativeTiles(*[case.similarity()] * 2, RAMP)
    lse = torch.full((2, 40), 20.0)
    rows = []
    for sums, gradients in ((triton_block_sums, triton_block_gradients), (block_sums, block_gradients)):
        found = sums(case.ecg, case.text, scale, tiles, 64)
        d_v, d_t, work = gradients(case.ecg, case.text, scale, tiles, *lse, 64)
        rows.append(
            torch.cat(
                (found.rows.isnan(), found.columns.isnan(), d_v.isnan().any(1), d_t.isnan().any(1), work.isnan()[None])
            ).tolist()
        )
    return rows


@pytest.mark.parametrize("what", ["ecg", "text", "features"])
def test_a_nan_goes_where_the_plain_path_lets_it_go(triton_run: Run, what: str) -> None:
    ours, plain = triton_run(_poisoned_row, what)
    assert any(plain)
    assert [place for place in range(161) if plain[place] and not ours[place]] == []


def _float32_features_of_bfloat16_embeddings() -> tuple[float, float]:
    limit_launches(1)
    case = Case(140)
    v, t = case.ecg.bfloat16(), case.text.bfloat16()
    tiles = NegativeTiles(*[case.in_dtype(torch.float32).similarity()] * 2, RAMP)
    scale = case.log_scale.float().exp().reshape(())
    ours, plain = triton_block_sums(v, t, scale, tiles, 64), block_sums(v, t, scale, tiles, 64)
    finite = plain.rows.isfinite()
    return float((ours.rows - plain.rows)[finite].abs().max()), float(abs(ours.alpha / plain.alpha - 1))


def test_features_lose_little_in_float16(triton_run: Run) -> None:
    sums, alpha = triton_run(_float32_features_of_bfloat16_embeddings)
    assert sums < 2e-3
    assert alpha < 1e-4


def _gradients_with_sums_raised_by(shift: float, width: int) -> tuple[bool, float]:
    limit_launches(1)
    case = Case(50, width).in_dtype(torch.float16)
    exact = case.in_dtype(torch.float64)
    scale = case.log_scale.float().exp().reshape(())
    lse = torch.full((2, 50), float(scale) + shift)
    none = Similarity()
    tiles = NegativeTiles(none, none, PLAIN)
    ours = triton_block_gradients(case.ecg, case.text, scale, tiles, *lse, 64)
    truth = block_gradients(exact.ecg, exact.text, scale.double(), tiles, *lse.double(), 64)
    return all(bool(d.isfinite().all()) for d in ours), joint_error([d.double() for d in ours], list(truth))


@pytest.mark.parametrize("width", [24, 260])
def test_weights_far_below_float16_keep_their_bits(triton_run: Run, width: int) -> None:
    finite, error = triton_run(_gradients_with_sums_raised_by, 5.0, width)
    assert finite and error < 1e-3


@pytest.mark.parametrize("width", [24, 260])
def test_sums_that_miss_a_logit_cannot_overflow(triton_run: Run, width: int) -> None:
    finite, _ = triton_run(_gradients_with_sums_raised_by, -500.0, width)
    assert finite


def _columns_of_another_rank(offset: int, weights: NegativeWeights) -> tuple[float, float, float]:
    limit_launches(1)
    case = Case(100).in_dtype(torch.float32)
    exact = case.in_dtype(torch.float64)
    parts = []
    for batch, sums in ((case, triton_block_sums), (exact, block_sums)):
        similarity = batch.similarity()
        assert similarity.features is not None and similarity.duplicate_key is not None
        rows = Similarity("cosine", similarity.features[:40], similarity.duplicate_key[:40])
        columns = Similarity("cosine", similarity.features[40:], similarity.duplicate_key[40:])
        scale = case.log_scale.exp().reshape(()).to(batch.ecg.dtype)
        parts.append(sums(batch.ecg[:40], batch.text[40:], scale, NegativeTiles(rows, columns, weights, offset), 64))
    ours, truth = parts
    return (
        joint_error([ours.rows.double()], [truth.rows]),
        joint_error([ours.columns.double()], [truth.columns]),
        float(ours.alpha),
    )


@pytest.mark.parametrize(("offset", "positives"), [(-40, 0), (-10, 30), (0, 40), (50, 10), (60, 0)])
def test_columns_may_be_those_of_another_rank(triton_run: Run, offset: int, positives: int) -> None:
    rows, columns, alpha = triton_run(_columns_of_another_rank, offset, PLAIN)
    assert max(rows, columns) < 1e-6
    assert alpha == 40 * 60 - positives
    rows, columns, alpha = triton_run(_columns_of_another_rank, offset, RAMP)
    assert max(rows, columns) < 1e-6
    assert 0 < alpha < 40 * 60 - positives


def _left_to_the_plain_path() -> list[bool]:
    case = Case(20)
    scale = case.log_scale.exp().reshape(())
    same = []
    assert not supports(case.ecg, case.text)
    arguments = (case.ecg, case.text, scale, NegativeTiles(*[case.similarity()] * 2, RAMP))
    ours, plain = triton_block_sums(*arguments, 8), block_sums(*arguments, 8)
    same += [torch.equal(a, b) for a, b in zip(ours, plain, strict=True)]
    lse = (plain.rows.clamp(min=30), plain.columns.clamp(min=30))
    gradients = zip(triton_block_gradients(*arguments, *lse, 8), block_gradients(*arguments, *lse, 8), strict=True)
    same += [torch.equal(a, b) for a, b in gradients]
    empty, pairs, tiles = torch.empty(0, 24), case.text.float(), NegativeTiles(Similarity(), Similarity(), PLAIN)
    for v, t in ((empty, pairs), (pairs, empty)):
        sums = triton_block_sums(v, t, scale.float(), tiles, 8)
        d_v, d_t, work = triton_block_gradients(v, t, scale.float(), tiles, torch.zeros(len(v)), torch.zeros(len(t)), 8)
        same += [
            bool((torch.cat((sums.rows, sums.columns)) == -float("inf")).all()),
            bool((torch.cat((d_v, d_t)) == 0).all()),
            float(work) == 0,
        ]
    return same


def test_float64_and_empty_shards_take_the_plain_path(triton_run: Run) -> None:
    assert all(triton_run(_left_to_the_plain_path))


def _available() -> tuple[bool, bool]:
    return available(torch.device("cpu")), available(torch.device("meta"))


def test_the_cpu_is_for_the_interpreter_only() -> None:
    assert interpreted(_available) == (True, False)
    assert not available(torch.device("cpu"))


def test_users_of_the_cpu_never_import_triton() -> None:
    kernels = ("contrastive", "contrastive.triton.backend", "patch_embed", "attention", "triton_support.compile_check")
    modules = ", ".join(f"cardialign.kernels.{name}" for name in kernels)
    program = f"import sys, {modules}; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0
