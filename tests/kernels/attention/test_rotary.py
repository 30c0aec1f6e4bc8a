"""Rotary positions count time in seconds, and the encoder's fast path is the plain formula bit for bit."""

from __future__ import annotations

import math

import pytest
import torch

from cardialign.kernels.attention import rotation, turn_heads
from cardialign.kernels.attention.rotary import LONGEST_PERIOD, SHORTEST_PERIOD, rotary
from tests.support.kernels.interpreter import Run, here
from tests.support.kernels.loss_family import poison_uninitialised_memory, relative


def queries(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, 9, 8, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def test_a_turned_product_depends_on_time_differences_only() -> None:
    q, k, _ = queries()
    seconds = torch.linspace(0, 8, 9, dtype=torch.float64)
    products = [rotary(q, seconds + shift) @ rotary(k, seconds + shift).transpose(-1, -2) for shift in (0.0, 1.234)]
    assert torch.allclose(products[0], products[1], atol=1e-10)
    assert not torch.allclose(products[0], q @ k.transpose(-1, -2), atol=1e-2)


def test_turning_keeps_lengths_and_time_zero_turns_nothing() -> None:
    q, _, _ = queries()
    assert torch.allclose(rotary(q, torch.linspace(0, 9, 9)).norm(dim=-1), q.norm(dim=-1))
    assert torch.equal(rotary(q, torch.zeros(9)), q)


def test_periods_run_from_the_shortest_to_the_longest() -> None:
    x = torch.zeros(1, 1, 1, 8, dtype=torch.float64)
    x[..., 0] = x[..., 3] = 1  # the first halves of the fastest and the slowest pair
    turned = rotary(x, torch.tensor([SHORTEST_PERIOD / 4], dtype=torch.float64))
    assert float(turned[..., 4]) == pytest.approx(1)
    assert float(turned[..., 7]) == pytest.approx(math.sin(math.pi / 2 * SHORTEST_PERIOD / LONGEST_PERIOD))


def test_times_may_differ_per_record() -> None:
    q, _, _ = queries()
    seconds = torch.rand(3, 9)
    together = rotary(q, seconds)
    for record in range(3):
        assert torch.allclose(together[record], rotary(q[record : record + 1], seconds[record])[0])


def test_bf16_tokens_are_turned_in_float32() -> None:
    q, _, _ = queries(torch.bfloat16)
    seconds = torch.linspace(0, 9.97, 9)
    turned = rotary(q, seconds)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotary(q.float(), seconds).bfloat16())


def test_rotary_refuses_what_does_not_fit() -> None:
    q, _, _ = queries()
    with pytest.raises(ValueError, match="seconds has shape"):
        rotary(q, torch.zeros(8))
    with pytest.raises(ValueError, match="head width 7 is odd"):
        rotary(q[..., :7], torch.zeros(9))
    with pytest.raises(ValueError, match="not ordered"):
        rotary(q, torch.zeros(9), shortest=2.0, longest=1.0)


@pytest.mark.parametrize("times", ["shared", "per record", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_turning_all_heads_at_once_equals_the_formula_bit_for_bit_in_value_and_gradient(
    dtype: torch.dtype, times: str
) -> None:
    seconds = torch.rand(3, 9) * 10 if times == "per record" else torch.linspace(0, 9.97, 9)
    q, k, v = (x.requires_grad_() for x in queries(dtype))
    expected = [rotary(q, seconds), rotary(k, seconds), v]
    weights = [torch.randn_like(x) for x in expected]
    reference = torch.autograd.grad(sum((a * b).sum() for a, b in zip(expected, weights, strict=True)), (q, k, v))

    qkv = torch.stack(
        [x.detach().transpose(1, 2) for x in (q, k, v)], dim=2
    )  # (B, N, 3, H, Dh), as a projection leaves it
    upstream = [w.transpose(1, 2) for w in weights]
    if times == "packed":
        qkv, upstream = qkv.flatten(0, 1), [w.flatten(0, 1) for w in upstream]
        table = rotation(seconds.repeat(3), 1, 8, dtype)
    else:
        table = rotation(seconds, 2, 8, dtype)
    qkv.requires_grad_()
    turned = turn_heads(qkv, table)
    (gradient,) = torch.autograd.grad(turned, qkv, upstream)
    for number in range(3):
        got, slope = (
            x.view(3, 9, 2, 8).transpose(1, 2)
            for x in (turned[number].contiguous(), gradient[..., number, :, :].contiguous())
        )
        assert torch.equal(got, expected[number])
        assert torch.equal(slope, reference[number])


def test_a_table_of_other_tokens_is_refused() -> None:
    qkv = torch.zeros(3, 9, 3, 2, 8)
    for table in (rotation(torch.zeros(8), 2, 8, torch.float32), rotation(torch.zeros(9), 2, 6, torch.float32)):
        with pytest.raises(ValueError, match="does not fit qkv"):
            turn_heads(qkv, table)


def through_triton(dtype: torch.dtype, times: str, heads: int, width: int) -> list[tuple[float, float]]:
    """Per result (queries, keys, values, the gradient): error against float64, and that of PyTorch in this type."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(2, 37, 3, heads, width, generator=generator, dtype=torch.float64, device="cpu")
    upstream = torch.randn(3, 2, heads, 37, width, generator=generator, dtype=torch.float64, device="cpu")
    times_of = {"per record": (2, 37), "packed": (74,)}.get(times, (37,))
    seconds = here(torch.rand(times_of, generator=generator, device="cpu") * 10)
    poison_uninitialised_memory(True)
    found = {}
    for name, kind, backend in (
        ("exact", torch.float64, "torch"),
        ("plain", dtype, "torch"),
        ("ours", dtype, "triton"),
    ):
        qkv = here(drawn).to(dtype).to(kind)
        weights = [w.transpose(1, 2) for w in here(upstream).to(dtype).to(kind)]  # as attention leaves them
        if times == "packed":
            qkv, weights = qkv.flatten(0, 1), [w.reshape(74, heads, width) for w in weights]
        qkv.requires_grad_()
        turned = turn_heads(qkv, rotation(seconds, 1 if times == "packed" else heads, width, kind), backend)  # type: ignore[arg-type]
        found[name] = [x.detach() for x in turned] + list(torch.autograd.grad(turned, qkv, weights))
    poison_uninitialised_memory(False)
    return [
        (relative(ours, exact), relative(plain, exact))
        for ours, plain, exact in zip(found["ours"], found["plain"], found["exact"], strict=True)
    ]


@pytest.mark.parametrize("times", ["shared", "per record", "packed"])
@pytest.mark.parametrize(
    ("dtype", "heads", "width"), [(torch.float32, 2, 8), (torch.bfloat16, 3, 64), (torch.float16, 1, 20)]
)
def test_the_triton_turn_is_the_formula_in_value_and_gradient(
    triton_run: Run, dtype: torch.dtype, heads: int, width: int, times: str
) -> None:
    for ours, plain in triton_run(through_triton, dtype, times, heads, width):
        assert ours <= 2 * plain + 1e-7


def test_the_triton_turn_refuses_what_it_cannot_do() -> None:
    qkv, table = torch.zeros(3, 9, 3, 2, 8), rotation(torch.zeros(9), 2, 8, torch.float32)
    with pytest.raises(ValueError, match=r"on CUDA, not torch.float32 on cpu; choose backend auto or torch"):
        turn_heads(qkv, table, "triton")
