"""What holds for every loss of the family in one process.

It is its full-matrix reference, it is symmetric, exact, repeatable, and holds no matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cardialign.kernels.contrastive import (
    Execution,
    Similarity,
    SoftTargets,
    ets,
    false_negative_mitigation,
    infonce,
    siglip,
    soft_target_infonce,
)
from cardialign.kernels.contrastive.plan import TORCH, choose_blocks
from tests.support.kernels.loss_family import FAMILY, Batch, Member, poison_uninitialised_memory, relative

SCALED = [name for name, member in FAMILY.items() if "log_scale" in member.leaves]


@pytest.fixture(params=FAMILY)
def member(request: pytest.FixtureRequest) -> Member:
    return FAMILY[request.param]


def assert_equal(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor], tolerance: float) -> None:
    for key, expected in truth.items():
        # gradients that vanish by symmetry have no relative precision
        assert relative(found[key], expected) < tolerance or torch.allclose(found[key], expected, rtol=0, atol=1e-14), (
            key
        )


@pytest.mark.parametrize("tau", [0.005, 0.07, 1.0])
@pytest.mark.parametrize(("rows", "chunk"), [(1, 4), (2, 1), (3, 2), (31, 8), (31, 64)])
def test_equals_the_full_matrix_in_float64(member: Member, rows: int, chunk: int, tau: float) -> None:
    batch = member.prepare(Batch.random(rows, tau=tau))
    found = member.value_and_gradients(member.tiled, batch, execution=Execution(chunk=chunk))
    assert found["loss"].dtype == torch.float64
    assert_equal(found, member.value_and_gradients(member.plain, batch), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_error_is_at_most_twice_that_of_the_plain_formula(member: Member, dtype: torch.dtype) -> None:
    batch = member.prepare(Batch.random(50, width=24, noise=0.5)).to(dtype)
    truth = member.value_and_gradients(member.plain, batch.to(torch.float64))
    rough = member.value_and_gradients(member.plain, batch)
    found = member.value_and_gradients(member.tiled, batch, execution=Execution(chunk=16))
    rounding = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]  # of the result itself
    assert found["loss"].dtype == torch.float32
    for key, expected in truth.items():
        floor = rounding if key in ("ecg", "text") else 3e-6
        assert relative(found[key], expected) <= 2 * relative(rough[key], expected) + floor, key
        assert relative(found[key], expected) < 2 * floor + 1e-5, key


def test_swapping_the_modalities_swaps_the_gradients(member: Member) -> None:
    batch = member.prepare(Batch.random(29))
    found = member.value_and_gradients(member.tiled, batch, execution=Execution(chunk=8))
    mirrored = member.value_and_gradients(
        member.tiled, replace(batch, ecg=batch.text, text=batch.ecg), execution=Execution(chunk=8)
    )
    assert_equal(
        {"loss": mirrored["loss"], "ecg": mirrored["text"], "text": mirrored["ecg"]},
        {k: found[k] for k in ("loss", "ecg", "text")},
        1e-11,
    )


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("tau", [0.005, 1.0])
def test_scale_gradient_equals_the_work_of_either_side(name: str, tau: float) -> None:
    batch = Batch.random(33, tau=tau)
    found = FAMILY[name].value_and_gradients(FAMILY[name].tiled, batch, execution=Execution(chunk=10))
    for side, rows in (("ecg", batch.ecg), ("text", batch.text)):
        assert float((rows * found[side]).sum()) == pytest.approx(float(found["log_scale"]), rel=1e-9, abs=1e-14)


def test_one_report_for_all_is_finite_and_exact(member: Member) -> None:
    batch = member.prepare(Batch.random(14))
    batch = replace(
        batch,
        key=torch.zeros(14, dtype=torch.int64),
        features=batch.features[:1].expand(14, -1),
        text=batch.text[:1].expand(14, -1),
    )
    found = member.value_and_gradients(member.tiled, batch, execution=Execution(chunk=5))
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert_equal(found, member.value_and_gradients(member.plain, batch), 1e-10)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    poison_uninitialised_memory(True)
    yield
    poison_uninitialised_memory(False)


def test_nothing_is_read_that_was_not_written_and_two_runs_are_bitwise_equal(
    member: Member, poisoned_memory: None
) -> None:
    batch = member.prepare(Batch.random(26)).to(torch.float32)
    first, second = (member.value_and_gradients(member.tiled, batch, execution=Execution(chunk=7)) for _ in range(2))
    for key, value in first.items():
        assert bool(value.isfinite().all()) and torch.equal(value, second[key]), key


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.elements = max(
            self.elements, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)), 0
        )
        return result


def test_no_operation_makes_more_than_a_tile(member: Member) -> None:
    batch = member.prepare(Batch.random(160, width=8))
    with LargestTensor() as tiled:
        member.value_and_gradients(member.tiled, batch, execution=Execution(chunk=32))
    with LargestTensor() as plain:
        member.value_and_gradients(member.plain, batch)
    assert plain.elements == 160 * 160
    assert tiled.elements <= 160 * 15


def test_the_gradient_scales_with_the_loss_and_is_absent_in_evaluation(member: Member) -> None:
    batch = member.prepare(Batch.random(12))
    once = member.value_and_gradients(member.tiled, batch)
    thrice = member.value_and_gradients(lambda b, **o: 3 * member.tiled(b, **o), batch)
    assert_equal(thrice, {key: 3 * value for key, value in once.items()}, 1e-13)
    with torch.no_grad():
        assert relative(member.tiled(batch), once["loss"]) < 1e-13


def test_hard_labels_are_the_special_case_of_soft_ones() -> None:
    b = Batch.random(21)
    unkeyed = Similarity("cosine", b.features)
    hard = infonce(b.ecg, b.text, b.log_scale)
    assert relative(soft_target_infonce(b.ecg, b.text, b.log_scale, unkeyed, SoftTargets("none")), hard) < 1e-13
    every = siglip(b.ecg, b.text, b.log_scale, b.bias)
    logits = b.log_scale.exp() * b.ecg @ b.text.T + b.bias
    by_hand = -F.logsigmoid(logits * (2 * torch.eye(21) - 1)).sum() / 21
    assert relative(every, by_hand) < 1e-12
    assert relative(siglip(b.ecg, b.text, b.log_scale, b.bias, unkeyed, SoftTargets("none")), by_hand) < 1e-12


def test_confident_pairs_keep_their_gradient_in_float32() -> None:
    """Logits near +-30: sigmoid(l) - 1 is 0 or noise here."""
    eye = torch.eye(8)
    log_scale, bias = torch.tensor([60.0]).log(), torch.tensor([-30.0])
    single = eye.clone().requires_grad_()
    siglip(single, eye, log_scale, bias).backward()
    double = eye.double().requires_grad_()
    siglip(double, eye.double(), log_scale.double(), bias.double()).backward()
    assert single.grad is not None and double.grad is not None
    assert float(torch.sigmoid(torch.tensor(30.0)) - 1) == 0
    assert relative(single.grad, double.grad) < 1e-5


def test_the_similarity_is_a_constant_even_when_it_is_made_of_the_text() -> None:
    b = Batch.random(17)
    text = b.text.clone().requires_grad_()
    false_negative_mitigation(b.ecg, text, Similarity("cosine", text)).backward()
    apart = b.text.clone().requires_grad_()
    false_negative_mitigation(b.ecg, apart, Similarity("cosine", b.text.clone())).backward()
    assert text.grad is not None and apart.grad is not None
    assert torch.equal(text.grad, apart.grad)


def test_a_fixed_temperature_gets_no_gradient() -> None:
    b = Batch.random(9)
    ecg = b.ecg.clone().requires_grad_()
    (infonce(ecg, b.text, b.log_scale) + siglip(ecg, b.text, b.log_scale, b.bias)).backward()
    assert ecg.grad is not None and b.log_scale.grad is None and b.bias.grad is None


def test_the_cpu_takes_pytorch_and_the_missing_backend_is_named() -> None:
    assert choose_blocks("auto", torch.device("cpu"), 1 << 40) is TORCH
    assert choose_blocks("auto", torch.device("cuda"), 100) is TORCH
    with pytest.raises(ValueError, match="unknown backend 'cuda'; use one of auto, torch, triton"):
        Execution(backend="cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: siglip(b.ecg, b.text, b.log_scale, torch.zeros(3)), r"bias has shape \(3,\); pass one element"),
        (lambda b: ets(b.ecg, b.text, torch.ones(5)), r"aligned is torch.float32 \(5,\)"),
        (lambda b: ets(b.ecg, b.text, torch.ones(4, dtype=torch.bool)), "for a batch of 5; pass one bool per pair"),
        (lambda b: ets(b.ecg[:0], b.text[:0]), "the batch is empty"),
        (
            lambda b: infonce(b.ecg, b.text, b.log_scale, Execution(scheme="star")),  # type: ignore[arg-type]
            "unknown scheme 'star'; use one of auto, gather, ring",
        ),
        (lambda b: false_negative_mitigation(b.ecg, b.text[:, :3], b.similarity()), "matching embeddings of one width"),
        (lambda b: SoftTargets("soft"), "unknown target form 'soft'; use one of none, ramp, sigmoid, identity"),  # type: ignore[arg-type]
        (lambda b: SoftTargets(low=0.9), "low 0.9 is not below high 0.8"),
        (lambda b: SoftTargets(weight=0), r"weight 0 is outside \(0, 1\]"),
        (lambda b: SoftTargets(slope=0), "slope 0 is not positive"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Batch.random(5))
