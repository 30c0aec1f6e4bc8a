"""The Triton tiles of the pointwise losses and of soft targets give the terms of the plain tiles.

Held against float64 through the interpreter. The yardstick of a gradient in half precision is what rounding the slopes
to the type of the embeddings alone costs, as for the softmax losses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from cardialign.kernels.contrastive.blocks import Judge
from cardialign.kernels.contrastive.plan import TORCH
from cardialign.kernels.contrastive.similarity import Similarity
from cardialign.kernels.contrastive.soft_targets import SoftTargets, TargetTiles
from cardialign.kernels.contrastive.triton.backend import TRITON
from tests.kernels.contrastive.test_losses import Case
from tests.kernels.contrastive.test_triton_softmax import FLOOR, joint_error
from tests.support.kernels.interpreter import Run, here, limit_launches
from tests.support.soak import long_form

RAMP = SoftTargets("ramp", low=-0.1, high=0.7, weight=0.8)
SIGMOID = SoftTargets("sigmoid", threshold=0.3, weight=0.6, match_duplicates=False)
IDENTITY = SoftTargets("identity")
HARD = SoftTargets("none", match_duplicates=False)
Terms = dict[str, torch.Tensor]


class Setting(NamedTuple):
    """A batch, how it is cut (the first rows of `sizes` against all), and the loss.

    form: a form of `block_terms`, or "soft" for soft targets.
    """

    form: str
    sizes: tuple[int, ...]
    width: int
    dtype: torch.dtype
    targets: SoftTargets = RAMP
    kind: str = "cosine"
    tau: float = 0.07
    programs: int = 1


class Block(NamedTuple):
    """The arguments of a block function."""

    v: torch.Tensor
    t: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor
    own: torch.Tensor
    tiles: TargetTiles
    sides: tuple[torch.Tensor, torch.Tensor]

    def terms(self, backend: Any, form: str, gradients: bool = True) -> Terms:
        if form != "soft":
            judge = Judge(form, self.scale, self.bias, self.own)  # type: ignore[arg-type]
            found = backend.terms(judge, self.v, self.t, self.tiles, gradients, 64)
            return {
                name: value
                for name, value in zip(("loss", "slope", "work", "d_v", "d_t"), found, strict=True)
                if value is not None
            }
        sums = backend.target_sums(self.v, self.t, self.scale, self.tiles, 64)
        d_v, d_t = (torch.zeros(side.shape, dtype=self.scale.dtype) for side in (self.v, self.t))
        backend.subtract_target_gradients(d_v, d_t, self.v, self.t, self.tiles, *self.sides, 64)
        return {**sums._asdict(), "d_v": d_v, "d_t": d_t}


def _block(case: Case, setting: Setting, rows: slice, columns: slice, dtype: torch.dtype) -> Block:
    """Rows against columns of one batch; `dtype` is the type of the accumulation."""
    known = case.similarity(setting.kind).with_dtype(dtype)
    key = known.duplicate_key
    assert key is not None

    def reports(part: slice) -> Similarity:
        return Similarity(known.kind, None if known.features is None else known.features[part], key[part])

    generator = torch.Generator().manual_seed(5)
    drawn = torch.rand(3, len(case.ecg), generator=generator, dtype=torch.float64, device="cpu")
    own, *shares = here(drawn.to(torch.float32).to(dtype))
    tiles = TargetTiles(reports(rows), reports(columns), setting.targets, rows.start - columns.start)
    scale, bias = (
        case.log_scale.float().exp().reshape(()).to(dtype),
        torch.tensor(-3.0 if setting.form == "logistic" else 0.0, dtype=dtype),
    )
    return Block(
        case.ecg[rows],
        case.text[columns],
        scale,
        bias,
        own[rows].round(),
        tiles,
        (shares[0][rows].clone(), shares[1][columns].clone()),
    )


def _slopes(block: Block, form: str) -> torch.Tensor:
    """The matrix of slopes, written anew."""
    rows, columns = slice(0, len(block.v)), slice(0, len(block.t))
    y = block.tiles.off_diagonal(rows, columns, block.v)
    if form == "soft":
        return -y * (block.sides[0][:, None] + block.sides[1][None, :])
    diagonal = y.diagonal(block.tiles.row_offset)
    first = max(0, -block.tiles.row_offset)
    diagonal.copy_(block.own[first : first + len(diagonal)])
    logits = block.v @ block.t.T * block.scale + block.bias
    return (logits - y).sign() if form == "absolute" else logits.sigmoid() - y


def _measure(setting: Setting) -> dict[str, tuple[float, float]]:
    """Error and yardstick of every term, over the row blocks of `sizes` one after the other."""
    limit_launches(setting.programs)
    torch.use_deterministic_algorithms(True)  # memory that nobody wrote is NaN
    rounded = Case(sum(setting.sizes), setting.width, setting.tau).in_dtype(setting.dtype)
    exact = rounded.in_dtype(torch.float64)
    exact.log_scale = rounded.log_scale.float()
    results: dict[str, list[list[torch.Tensor]]] = {}
    start = 0
    for size in setting.sizes:
        rows, everything = slice(start, start + size), slice(0, sum(setting.sizes))
        start += size
        block = _block(rounded, setting, rows, everything, torch.float32)
        block64 = _block(exact, setting, rows, everything, torch.float64)
        ours, again, plain = (
            block.terms(TRITON, setting.form),
            block.terms(TRITON, setting.form),
            block.terms(TORCH, setting.form),
        )
        truth = block64.terms(TORCH, setting.form)
        for name, value in ours.items():
            assert torch.equal(value.reshape(-1).view(torch.uint8), again[name].reshape(-1).view(torch.uint8)), name
            assert value.dtype == (torch.float64 if name in ("loss", "slope", "work") else torch.float32)
        if setting.dtype != torch.float32:
            slopes = _slopes(block64, setting.form).to(setting.dtype).double()
            plain |= {"d_v": slopes @ block64.t, "d_t": slopes.T @ block64.v}
        if "slope" in truth:
            # positive and negative slopes cancel: sums are known relative to the sum of the sizes, here twice it,
            # so that slopes that are all negative do not leave nothing
            size_of = 2 * _slopes(block64, setting.form).abs().sum()
            for found in (ours, plain, truth):
                found["slope"] = found["slope"].double() + size_of
                found["work"] = found["work"].double() + size_of * block64.scale
            evaluated = block.terms(TRITON, setting.form, gradients=False)
            assert abs(float(evaluated["loss"] / ours["loss"]) - 1) < 1e-6
        for name, expected in truth.items():
            for place, value in zip(
                results.setdefault(name, [[], [], []]), (ours[name], plain[name], expected), strict=True
            ):
                place.append(value.double())
    return {
        name: (joint_error(ours, truth), joint_error(plain, truth)) for name, (ours, plain, truth) in results.items()
    }


SETTINGS = [
    long_form(Setting("logistic", (90,), 24, torch.float32)),
    long_form(Setting("logistic", (50, 1, 27), 40, torch.float32, SIGMOID, "jaccard", tau=0.02, programs=4)),
    Setting("logistic", (70,), 300, torch.float32, HARD, "none", tau=0.005),
    Setting("logistic", (1,), 8, torch.float32),
    Setting("logistic", (90,), 37, torch.bfloat16, RAMP, "jaccard", programs=4),
    long_form(Setting("logistic", (30, 5, 45), 264, torch.bfloat16, tau=0.02)),
    long_form(Setting("logistic", (80,), 64, torch.float16, SIGMOID)),
    Setting("logistic", (70,), 270, torch.float16, IDENTITY, tau=1.0),
    Setting("absolute", (70,), 33, torch.float32, IDENTITY, "jaccard", tau=1.0),
    long_form(Setting("absolute", (40, 30), 260, torch.float32, IDENTITY, tau=1.0)),
    Setting("absolute", (90,), 64, torch.bfloat16, IDENTITY, tau=1.0, programs=4),
    Setting("soft", (50, 13, 27), 24, torch.float32),
    Setting("soft", (70,), 260, torch.float32, SIGMOID, "jaccard", tau=0.005),
    Setting("soft", (2,), 24, torch.float32, SoftTargets("none"), "none"),
    Setting("soft", (90,), 64, torch.bfloat16, SIGMOID, programs=4),
    long_form(Setting("soft", (30, 5, 45), 264, torch.bfloat16, RAMP, "jaccard", tau=0.02)),
    Setting("soft", (80,), 40, torch.float16, IDENTITY),
]


@pytest.mark.parametrize(
    "setting", SETTINGS, ids=lambda s: f"{s.form}-{s.sizes}-{s.width}-{str(s.dtype)[6:]}-{s.targets.form}-{s.kind}"
)
def test_terms_against_float64(triton_run: Run, setting: Setting) -> None:
    for name, (ours, yardstick) in triton_run(_measure, setting).items():
        assert ours <= 2 * yardstick + FLOOR, f"{name}: {ours:.1e}, yardstick {yardstick:.1e}"


def _columns_of_another_rank(form: str, offset: int) -> dict[str, float]:
    """Rows and columns that share no pair, or only some: 40 rows against 60 columns."""
    limit_launches(1)
    case = Case(160).in_dtype(torch.float32)
    rows, columns = slice(60, 100), slice(60 - offset, 120 - offset)
    setting = Setting(form, (), 24, torch.float32)
    ours = _block(case, setting, rows, columns, torch.float32).terms(TRITON, form)
    truth = _block(case.in_dtype(torch.float64), setting, rows, columns, torch.float64).terms(TORCH, form)
    return {name: joint_error([ours[name].double()], [truth[name].double()]) for name in truth}


@pytest.mark.parametrize("offset", [-40, -10, 50, 60])
@pytest.mark.parametrize("form", ["logistic", "soft"])
def test_columns_may_be_those_of_another_rank(triton_run: Run, form: str, offset: int) -> None:
    assert max(triton_run(_columns_of_another_rank, form, offset).values()) < 3e-6


def _confident_pairs(width: int) -> tuple[float, float]:
    """Logits of +30 and -30: sigmoid(l) - 1 is 0 or noise here, and log(1 + e^-30) is 0."""
    eye = torch.eye(8, width)
    errors = []
    for batch, backend in ((eye, TRITON), (eye.double(), TORCH)):
        tiles = TargetTiles(Similarity(), Similarity(), HARD)
        scale, bias = torch.tensor(60.0, dtype=batch.dtype), torch.tensor(-30.0, dtype=batch.dtype)
        judge = Judge("logistic", scale, bias, torch.ones(8, dtype=batch.dtype))
        errors.append(backend.terms(judge, batch, batch, tiles, True, 8))
    (loss, _, _, d_v, _), (loss64, _, _, d_v64, _) = errors
    return abs(float(loss / loss64) - 1), joint_error([d_v.double()], [d_v64])


@pytest.mark.parametrize("width", [8, 257])
def test_confident_pairs_keep_their_loss_and_gradient(triton_run: Run, width: int) -> None:
    loss, gradient = triton_run(_confident_pairs, width)
    assert loss < 1e-5 and gradient < 1e-5


def _softplus_of_single_pairs() -> float:
    """One column: the partial sums of a launch are the values of the pairs themselves."""
    from cardialign.kernels.contrastive.triton.gradients import Pairs, fused_launch
    from cardialign.kernels.contrastive.triton.operands import Operands

    logits = torch.linspace(-80, 80, 321)
    one, none = torch.ones(()), Similarity()
    tiles = TargetTiles(none, none, HARD, row_offset=-321)
    operands = Operands.of(logits[:, None], torch.ones(1, 1), one, tiles)
    launch = fused_launch(Pairs(operands, "logistic", logits, one[None], 0 * one), sums=True, gradient=False)
    launch.run()
    values, slopes = (launch.arguments[name][0].double() for name in ("VALUES", "SLOPES"))
    truth = torch.logaddexp(logits.double(), torch.zeros(321, dtype=torch.float64))
    return max(float((values / truth - 1).abs().max()), float((slopes / logits.double().sigmoid() - 1).abs().max()))


def test_softplus_and_sigmoid_keep_their_relative_precision_over_the_whole_range(triton_run: Run) -> None:
    assert triton_run(_softplus_of_single_pairs) < 1e-5


def _poisoned_row(form: str, what: str) -> list[bool]:
    limit_launches(1)
    case = Case(40).in_dtype(torch.float32)
    getattr(case, what)[3, 0] = float("nan")
    setting = Setting(form, (), 24, torch.float32, IDENTITY)
    block = _block(case, setting, slice(0, 40), slice(0, 40), torch.float32)
    ours, plain = block.terms(TRITON, form), block.terms(TORCH, form)
    assert any(bool(value.isnan().any()) for value in plain.values())
    return [bool((ours[name].isnan() | ~plain[name].isnan()).all()) for name in plain]


@pytest.mark.parametrize("what", ["ecg", "text", "features"])
@pytest.mark.parametrize("form", ["logistic", "absolute", "soft"])
def test_a_nan_goes_where_the_plain_path_lets_it_go(triton_run: Run, form: str, what: str) -> None:
    assert all(triton_run(_poisoned_row, form, what))


def _left_to_the_plain_path() -> list[bool]:
    case, same = Case(20), []
    setting = Setting("logistic", (), 24, torch.float64)
    for rows, columns in ((slice(0, 20), slice(0, 20)), (slice(4, 4), slice(0, 20)), (slice(0, 20), slice(4, 4))):
        mine = case if rows.stop == columns.stop else case.in_dtype(torch.float32)
        block = _block(mine, setting, rows, columns, mine.ecg.dtype)
        for form in ("logistic", "absolute", "soft"):
            ours, plain = block.terms(TRITON, form), block.terms(TORCH, form)
            same += [torch.equal(ours[name], plain[name]) for name in plain]
    return same


def test_float64_and_empty_shards_take_the_plain_path(triton_run: Run) -> None:
    assert all(triton_run(_left_to_the_plain_path))
