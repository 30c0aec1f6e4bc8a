"""Attention equals its plain formula, a mask equals leaving tokens out, and time is counted in seconds."""

from __future__ import annotations

import math

import pytest
import torch

from kernels.attention import LONGEST_PERIOD, SHORTEST_PERIOD, attention, attention_pool, rotary, rotate, rotation
from kernels.attention_backends import Backend


def queries(tokens: int = 9, keys: int | None = None, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (tokens, keys or tokens, keys or tokens)
    return [torch.randn(3, 2, size, 8, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]


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
    q, _, _ = queries(dtype=torch.bfloat16)
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


@pytest.mark.parametrize("keys", [9, 14])
@pytest.mark.parametrize("masked", [False, True])
def test_the_fast_path_equals_the_formula_in_value_and_gradient(masked: bool, keys: int) -> None:
    mask = torch.rand(3, keys, generator=torch.Generator().manual_seed(1)) < 0.5 if masked else None
    if mask is not None:
        mask[:, 0] = True
    fast, plain = queries(keys=keys), queries(keys=keys)
    outputs = [attention(*fast, mask, backend="sdpa"), attention(*plain, mask, backend="math")]
    assert torch.allclose(outputs[0], outputs[1], atol=1e-12)
    for output in outputs:
        output.square().sum().backward()
    for tensor, expected in zip(fast, plain, strict=True):
        assert tensor.grad is not None and expected.grad is not None
        assert torch.allclose(tensor.grad, expected.grad, atol=1e-11)


def test_masking_keys_equals_leaving_them_out() -> None:
    q, k, v = queries()
    mask = torch.zeros(3, 9, dtype=torch.bool)
    kept = [1, 4, 5]
    mask[:, kept] = True
    assert torch.allclose(attention(q, k, v, mask), attention(q, k[:, :, kept], v[:, :, kept]), atol=1e-12)


@pytest.mark.parametrize("backend", ["sdpa", "math"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_record_without_keys_gives_zero_and_finite_gradients(backend: Backend, dtype: torch.dtype) -> None:
    q, k, v = queries(dtype=dtype)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1] = False
    output = attention(q, k, v, mask, backend=backend)
    assert float(output[1].detach().abs().max()) == 0
    assert float(output[0].detach().abs().max()) > 0
    output.sum().backward()
    for tensor in (q, k, v):
        assert tensor.grad is not None
        assert bool(tensor.grad.isfinite().all())
        assert float(tensor.grad[1].abs().max()) == 0


@pytest.mark.parametrize("per_record", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_table_made_once_turns_bit_for_bit_like_one_made_for_the_tokens(dtype: torch.dtype, per_record: bool) -> None:
    q, _, _ = queries(dtype=dtype)
    seconds = torch.rand(3, 9) * 10 if per_record else torch.linspace(0, 9.97, 9)
    assert torch.equal(rotate(q, rotation(seconds, 8, q.dtype, axis=-3)), rotary(q, seconds))
    record = seconds[1] if per_record else seconds
    packed = rotate(q[1].transpose(0, 1), rotation(record, 8, q.dtype, axis=-2))
    assert torch.equal(packed.transpose(0, 1), rotary(q, seconds)[1])


def test_masks_that_do_not_fit_are_refused() -> None:
    q, k, v = queries()
    with pytest.raises(ValueError, match=r"pass bool \(3, 9\)"):
        attention(q, k, v, torch.ones(3, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"pass bool \(3, 9\)"):
        attention_pool(torch.ones(8), torch.ones(3, 9, 8), torch.ones(3, 9))
    with pytest.raises(ValueError, match="tokens of width 8"):
        attention_pool(torch.ones(6), torch.ones(3, 9, 8))


def test_pooling_is_single_query_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 9, 8, generator=generator, dtype=torch.float64)
    query = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 9, generator=generator) < 0.6
    mask[:, 0] = True
    parts = tokens.unflatten(-1, (2, 4)).transpose(1, 2)
    expected = attention(query[None, :, None].expand(3, 2, 1, 4), parts, parts, mask, backend="math")
    assert torch.allclose(attention_pool(query, tokens, mask), expected.transpose(1, 2).flatten(1), atol=1e-12)
    single = attention_pool(query.flatten(), tokens, mask)
    alone = attention(query.reshape(1, 1, 1, 8).expand(3, 1, 1, 8), tokens[:, None], tokens[:, None], mask, backend="math")
    assert torch.allclose(single, alone[:, 0, 0], atol=1e-12)


def test_pooling_no_tokens_gives_zero_and_finite_gradients() -> None:
    tokens = torch.randn(2, 5, 8, requires_grad=True)
    query = torch.randn(8, requires_grad=True)
    mask = torch.tensor([[True] * 5, [False] * 5])
    pooled = attention_pool(query, tokens, mask)
    assert float(pooled[1].detach().abs().max()) == 0
    pooled.sum().backward()
    assert tokens.grad is not None and query.grad is not None
    assert bool(tokens.grad.isfinite().all()) and bool(query.grad.isfinite().all())
    assert float(tokens.grad[1].abs().max()) == 0
