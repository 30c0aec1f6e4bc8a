"""The tiled loss is the full-matrix loss, in value and in gradient, and it holds no matrix.

For every temperature, tile size and type.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cardialign.data_shards.benchmarks.process import peak_memory
from cardialign.kernels.contrastive import ContrastiveOutput, Execution, NegativeWeights, Similarity, weighted_infonce
from cardialign.kernels.contrastive.reference import reference_infonce
from tests.support.kernels.interpreter import here
from tests.support.processes import run_ranks

PLAIN = NegativeWeights("none", drop_duplicates=False)
RAMP = NegativeWeights("ramp", low=0.2, high=0.8)
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Case:
    """A batch in float64; `in_dtype` rounds it once, so that every implementation starts from the same numbers."""

    def __init__(self, batch: int, width: int = 24, tau: float = 0.07, noise: float = 0.4, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return here(torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu"))

        def integers(low: int, high: int) -> torch.Tensor:
            return here(torch.randint(low, high, (batch,), generator=generator, device="cpu"))

        self.ecg = F.normalize(normal(batch, width), dim=1)
        self.text = F.normalize(self.ecg + noise * normal(batch, width), dim=1)
        centres, chosen = normal(6, 11), integers(0, 6)
        self.features = F.normalize(centres[chosen] + 0.6 * normal(batch, 11), dim=1)
        self.statements = here((torch.rand(batch, 15, generator=generator, device="cpu") < 0.2).double())
        self.key = integers(-1, max(batch // 2, 1))
        self.log_scale = torch.tensor([math.log(1 / tau)], dtype=torch.float64)

    def in_dtype(self, dtype: torch.dtype) -> Case:
        other = object.__new__(Case)
        other.__dict__ = {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in self.__dict__.items()
        }
        return other

    def similarity(self, kind: str = "cosine") -> Similarity:
        return Similarity(kind, {"cosine": self.features, "jaccard": self.statements, "none": None}[kind], self.key)  # type: ignore[arg-type]

    def tiled(
        self, similarity: Similarity, weights: NegativeWeights, chunk: int = 1024
    ) -> tuple[ContrastiveOutput, Gradients]:
        leaves = [tensor.clone().requires_grad_() for tensor in (self.ecg, self.text, self.log_scale)]
        output = weighted_infonce(*leaves, similarity, weights, Execution(chunk=chunk))
        output.loss.backward()
        return output, tuple(leaf.grad for leaf in leaves)  # type: ignore[return-value]

    def naive(self, similarity: Similarity, weights: NegativeWeights) -> tuple[torch.Tensor, torch.Tensor, Gradients]:
        leaves = [tensor.clone().requires_grad_() for tensor in (self.ecg, self.text, self.log_scale)]
        loss, effective = reference_infonce(*leaves, similarity, weights)
        loss.backward()
        return loss.detach(), effective, tuple(leaf.grad for leaf in leaves)  # type: ignore[return-value]


def error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float(
        (value.detach().double() - truth.detach().double()).norm() / truth.detach().double().norm().clamp(min=1e-300)
    )


@pytest.mark.parametrize("chunk", [10, 37, 64])
@pytest.mark.parametrize("tau", [0.005, 0.07, 1.0])
@pytest.mark.parametrize("kind", ["cosine", "jaccard", "none"])
@pytest.mark.parametrize(
    "weights", [RAMP, NegativeWeights("exponential", 0.1, 0.7, gamma=3.0), PLAIN], ids=lambda weights: weights.form
)
def test_equals_the_full_matrix_in_float64(weights: NegativeWeights, kind: str, tau: float, chunk: int) -> None:
    case = Case(37, tau=tau)
    loss, effective, truth = case.naive(case.similarity(kind), weights)
    output, gradients = case.tiled(case.similarity(kind), weights, chunk)
    assert output.loss.dtype == torch.float64
    assert error(output.loss, loss) < 1e-11
    assert error(output.effective_negatives, effective) < 1e-6
    for gradient, expected in zip(gradients, truth, strict=True):
        assert error(gradient, expected) < 1e-10


@pytest.mark.parametrize("batch", [1, 2, 3, 9])
def test_tiles_of_one_pair_give_the_same(batch: int) -> None:
    case = Case(batch)
    loss, _, truth = case.naive(case.similarity(), RAMP)
    output, gradients = case.tiled(case.similarity(), RAMP, chunk=1)
    assert torch.allclose(output.loss, loss, rtol=1e-12, atol=1e-15)
    assert all(
        torch.allclose(gradient, expected, rtol=1e-10, atol=1e-15)
        for gradient, expected in zip(gradients, truth, strict=True)
    )


def test_equal_weights_are_cross_entropy_in_both_directions() -> None:
    case = Case(50)
    ecg, text, log_scale = (tensor.clone().requires_grad_() for tensor in (case.ecg, case.text, case.log_scale))
    logits = log_scale.exp() * ecg @ text.T
    target = torch.arange(50)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    expected.backward()
    output, gradients = case.tiled(Similarity(), PLAIN, chunk=16)
    assert error(output.loss, expected.detach()) < 1e-13
    assert float(output.effective_negatives) == 49
    for gradient, leaf in zip(gradients, (ecg, text, log_scale), strict=True):
        assert leaf.grad is not None
        assert error(gradient, leaf.grad) < 1e-12


@pytest.mark.parametrize("chunk", [3, 1024])
def test_without_negatives_loss_and_gradients_are_zero(chunk: int) -> None:
    case = Case(10)
    output, gradients = case.tiled(Similarity("none", None, torch.zeros(10, dtype=torch.int64)), RAMP, chunk)
    assert float(output.loss.detach()) == 0
    assert float(output.effective_negatives) == 0
    assert all(bool((gradient == 0).all()) for gradient in gradients)


def test_a_batch_of_one_has_loss_zero_and_no_gradient() -> None:
    case = Case(1)
    output, gradients = case.tiled(Similarity(), PLAIN)
    assert float(output.loss.detach()) == 0
    assert float(output.effective_negatives) == 0
    assert all(bool((gradient == 0).all()) for gradient in gradients)


def test_a_row_without_negatives_leaves_the_others_exact() -> None:
    case = Case(12)
    case.features[:] = torch.eye(12, 11, dtype=torch.float64)[torch.arange(12) % 11]
    case.features[4] = 0.9 * torch.ones(11, dtype=torch.float64)  # above `high` with every other report
    case.key[:] = -1
    loss, _, truth = case.naive(case.similarity(), RAMP)
    output, gradients = case.tiled(case.similarity(), RAMP, chunk=5)
    assert error(output.loss, loss) < 1e-12
    assert all(error(gradient, expected) < 1e-11 for gradient, expected in zip(gradients, truth, strict=True))


def test_duplicate_reports_are_no_negatives_and_keys_below_zero_are_no_duplicates() -> None:
    case = Case(4)
    case.key = torch.tensor([5, 5, -1, -1])
    output, _ = case.tiled(case.similarity("none"), RAMP)
    assert float(output.effective_negatives) == pytest.approx((2 + 2 + 3 + 3) / 4)
    kept, _ = case.tiled(case.similarity("none"), NegativeWeights(drop_duplicates=False))
    assert float(kept.effective_negatives) == 3


@pytest.mark.parametrize("tau", [0.005, 0.07, 1.0])
def test_scale_gradient_equals_the_work_of_either_side(tau: float) -> None:
    case = Case(45, tau=tau)
    _, (d_ecg, d_text, d_log_scale) = case.tiled(case.similarity(), RAMP, chunk=16)
    assert float((case.ecg * d_ecg).sum()) == pytest.approx(float(d_log_scale), rel=1e-10)
    assert float((case.text * d_text).sum()) == pytest.approx(float(d_log_scale), rel=1e-10)


def test_swapping_the_modalities_swaps_the_gradients() -> None:
    case, swapped = Case(33), Case(33)
    swapped.ecg, swapped.text = case.text, case.ecg
    output, (d_ecg, d_text, _) = case.tiled(case.similarity(), RAMP, chunk=10)
    mirrored, (d_first, d_second, _) = swapped.tiled(case.similarity(), RAMP, chunk=10)
    assert error(mirrored.loss, output.loss) < 1e-13
    assert error(d_first, d_text) < 1e-12
    assert error(d_second, d_ecg) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tau", [0.01, 0.07])
def test_low_precision_error_is_at_most_twice_that_of_the_plain_formula(dtype: torch.dtype, tau: float) -> None:
    case = Case(64, tau=tau, noise=0.5).in_dtype(dtype)
    case.log_scale = case.log_scale.float()
    loss, _, truth = case.in_dtype(torch.float64).naive(case.in_dtype(torch.float64).similarity(), RAMP)
    plain_loss, _, plain = case.naive(case.similarity(), RAMP)
    output, gradients = case.tiled(case.similarity(), RAMP, chunk=24)
    floor = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[
        dtype
    ]  # the result itself is rounded to this type
    assert output.loss.dtype == torch.float32
    assert error(output.loss, loss) <= 2 * error(plain_loss, loss) + 1e-6
    assert error(output.loss, loss) < 1e-4
    for gradient, rough, expected in zip(gradients, plain, truth, strict=True):
        assert error(gradient, expected) <= 2 * error(rough, expected) + floor
        assert error(gradient, expected) < 2 * floor + 1e-5


def test_a_small_loss_keeps_its_gradient_in_float32() -> None:
    """Well-aligned pairs at a low temperature: the form P - 1 returns zeros or noise here."""
    case = Case(40, width=64, tau=0.03, noise=0.03)
    single = case.in_dtype(torch.float32)
    exact = single.in_dtype(torch.float64)
    loss, _, truth = exact.naive(exact.similarity("none"), PLAIN)
    _, _, naive = single.naive(single.similarity("none"), PLAIN)
    output, gradients = single.tiled(single.similarity("none"), PLAIN, chunk=16)
    assert float(loss) < 1e-5
    assert error(naive[0], truth[0]) > 1e-3
    assert error(output.loss, loss) < 1e-4
    assert all(error(gradient, expected) < 1e-4 for gradient, expected in zip(gradients, truth, strict=True))


def test_autocast_around_the_loss_does_not_round_it() -> None:
    case = Case(30).in_dtype(torch.float32)
    outside, expected = case.tiled(case.similarity(), RAMP)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, gradients = case.tiled(case.similarity(), RAMP)
    assert torch.equal(inside.loss, outside.loss)
    assert all(torch.equal(gradient, same) for gradient, same in zip(gradients, expected, strict=True))


def test_two_runs_are_bitwise_equal() -> None:
    case = Case(70).in_dtype(torch.float32)
    first, second = (case.tiled(case.similarity(), RAMP, chunk=16) for _ in range(2))
    assert torch.equal(first[0].loss, second[0].loss)
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_the_gradient_scales_with_the_loss_and_never_reaches_the_reports() -> None:
    case = Case(20)
    features = case.features.clone().requires_grad_()
    ecg = case.ecg.clone().requires_grad_()
    output = weighted_infonce(ecg, case.text, case.log_scale, Similarity("cosine", features, case.key), RAMP)
    assert not output.effective_negatives.requires_grad
    (4 * output.loss).backward()
    _, (d_ecg, _, _) = case.tiled(case.similarity(), RAMP)
    assert ecg.grad is not None
    assert error(ecg.grad, 4 * d_ecg) < 1e-14
    assert features.grad is None


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


@pytest.mark.parametrize("kind", ["cosine", "jaccard"])
def test_no_operation_makes_more_than_a_tile(kind: str) -> None:
    case = Case(200, width=8)
    with LargestTensor() as tiled:
        case.tiled(case.similarity(kind), RAMP, chunk=48)
    with LargestTensor() as naive:
        case.naive(case.similarity(kind), RAMP)
    assert naive.elements == 200 * 200
    assert tiled.elements <= max(48 * 48, 200 * 15)


def peak_growth(rank: int, world: int, batch: int, tiled: bool) -> float:
    """MiB by which one forward and backward raise the peak resident memory."""
    generator = torch.Generator().manual_seed(0)
    ecg, text, features = (F.normalize(torch.randn(batch, 32, generator=generator), dim=1) for _ in range(3))
    ecg.requires_grad_(), text.requires_grad_()
    log_scale = torch.tensor([3.0], requires_grad=True)
    similarity = Similarity("cosine", features)
    before = peak_memory()
    if tiled:
        loss = weighted_infonce(ecg, text, log_scale, similarity, RAMP, Execution(chunk=512)).loss
    else:
        loss, _ = reference_infonce(ecg, text, log_scale, similarity, RAMP)
    loss.backward()
    return (peak_memory() - before) / 2**20


@pytest.mark.processes
def test_peak_memory_grows_with_the_batch_not_with_its_square() -> None:
    growth = {batch: run_ranks(1, peak_growth, batch, True, init=False)[0] for batch in (1024, 2048, 4096)}
    naive = run_ranks(1, peak_growth, 2048, False, init=False)[0]
    assert naive > 4 * 2048 * 2048 * 4 / 2**20
    assert growth[4096] < naive / 2
    # features and gradients are 32 wide: 12 tensors of 4096 x 32 floats are 6 MiB, one more matrix would be 64
    assert growth[4096] - growth[2048] < 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": torch.zeros(3, 4)}, r"ecg \(5, 4\) and text \(3, 4\)"),
        ({"log_scale": torch.zeros(2)}, "one element"),
        ({"chunk": 0}, "chunk 0"),
        ({"similarity": Similarity("cosine", torch.zeros(4, 2))}, "features has 4 rows for a batch of 5"),
        ({"ecg": torch.zeros(0, 4), "text": torch.zeros(0, 4)}, "batch is empty"),
        ({"ecg": torch.zeros(5, 4, dtype=torch.int64)}, "must be floating point"),
    ],
)
def test_operands_that_do_not_fit_are_refused_with_the_numbers(change: dict[str, Any], message: str) -> None:
    operands: dict[str, Any] = {
        "ecg": torch.zeros(5, 4),
        "text": torch.zeros(5, 4),
        "log_scale": torch.zeros(1),
        "similarity": Similarity(),
        "weights": PLAIN,
        **change,
    }
    chunk = operands.pop("chunk", 1024)
    with pytest.raises(ValueError, match=message):
        weighted_infonce(**operands, execution=Execution(chunk=chunk))
