"""Attention equals its plain formula, and a mask equals leaving tokens out."""

from __future__ import annotations

import pytest
import torch

from cardialign.kernels.attention import attention, attention_pool
from cardialign.kernels.attention.backends import Backend


def queries(tokens: int = 9, keys: int | None = None, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (tokens, keys or tokens, keys or tokens)
    return [
        torch.randn(3, 2, size, 8, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for size in sizes
    ]


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
    alone = attention(
        query.reshape(1, 1, 1, 8).expand(3, 1, 1, 8), tokens[:, None], tokens[:, None], mask, backend="math"
    )
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
