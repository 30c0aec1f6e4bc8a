"""Packed sequences give what masked dense ones give, in value and in gradient, empty sequences included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cardialign.kernels.attention import attention, pack, packed_attention, plan_buckets, unpack

# Full, shorter by less than an eighth (shares a bucket with padding), empty, with holes, one token,
# and the same length again.
LENGTHS = [17, 16, 0, 7, 1, 17, 0]


def masks(holes: bool = True) -> Tensor:
    mask = torch.arange(17)[None, :] < torch.tensor(LENGTHS)[:, None]
    if holes:
        mask[0, [2, 5]] = False
    return mask


def dense_operands(dtype: torch.dtype = torch.float64, batch: int = len(LENGTHS)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, 17, 3, 8, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for _ in range(3)
    ]


@pytest.mark.parametrize("backend", ["auto", "sdpa", "math"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_packed_equals_masked_dense_forward_and_backward(dtype: torch.dtype, tolerance: float, backend) -> None:
    mask = masks()
    weight = torch.randn(len(LENGTHS), 17, 3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )

    dense = dense_operands(dtype)
    expected = attention(*(x.transpose(1, 2) for x in dense), mask, backend="math").transpose(1, 2)
    (expected * weight * mask[:, :, None, None]).sum().backward()

    leaves = dense_operands(dtype)
    parts = [pack(x, mask) for x in leaves]
    output = packed_attention(
        *(part.tokens for part in parts), parts[0].cu_seqlens, parts[0].max_seqlen, backend=backend
    )
    back = unpack(output, parts[0].indices, *mask.shape)
    (back * weight).sum().backward()

    assert torch.equal(back[~mask], torch.zeros_like(back[~mask]))
    assert torch.allclose(back[mask], expected[mask], atol=tolerance)
    for leaf, reference in zip(leaves, dense, strict=True):
        assert leaf.grad is not None and reference.grad is not None
        assert float(reference.grad.abs().max()) > 0.1
        assert torch.allclose(leaf.grad, reference.grad, atol=tolerance)


def test_bfloat16_stays_within_twice_the_error_of_the_plain_formula() -> None:
    mask, exact = masks(), dense_operands()
    parts = [pack(x.detach(), mask) for x in exact]
    cu, longest = parts[0].cu_seqlens, parts[0].max_seqlen
    truth = packed_attention(*(part.tokens for part in parts), cu, longest, backend="math")
    low = [part.tokens.bfloat16() for part in parts]
    errors = {
        name: (packed_attention(*low, cu, longest, backend=name) - truth).abs().max() for name in ("math", "sdpa")
    }
    assert errors["sdpa"] <= 2 * errors["math"] + 1e-3


def test_pack_keeps_the_order_and_unpack_undoes_it() -> None:
    mask = masks()
    tokens = torch.randn(*mask.shape, 5)
    packed = pack(tokens, mask)
    assert packed.tokens.shape == (int(mask.sum()), 5) and packed.max_seqlen == 17
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.cu_seqlens.diff().tolist() == mask.sum(1).tolist()
    for row, (start, end) in enumerate(zip(packed.cu_seqlens[:-1], packed.cu_seqlens[1:], strict=True)):
        assert torch.equal(packed.tokens[start:end], tokens[row, mask[row]])
    assert torch.equal(unpack(packed.tokens, packed.indices, *mask.shape), torch.where(mask[..., None], tokens, 0.0))


def test_buckets_hold_every_token_once_and_little_padding() -> None:
    lengths = torch.randint(0, 200, (64,), generator=torch.Generator().manual_seed(0))
    cu = torch.cat((torch.zeros(1), lengths.cumsum(0))).to(torch.int32)
    plan = plan_buckets(cu)
    laid = torch.cat([bucket.rows.flatten() for bucket in plan.buckets])
    assert torch.equal(laid[plan.back], torch.arange(int(cu[-1])))
    assert len(laid) <= int(cu[-1]) * 8 / 7
    assert len(plan.buckets) < 30 < len(set(lengths.tolist()))


def test_equal_lengths_need_no_mask() -> None:
    (bucket,) = plan_buckets(torch.tensor([0, 4, 4, 8], dtype=torch.int32)).buckets
    assert bucket.mask is None and bucket.rows.tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_only_empty_sequences_give_nothing_and_keep_the_graph(backend) -> None:
    leaves = dense_operands(batch=2)
    parts = [pack(x, torch.zeros(2, 17, dtype=torch.bool)) for x in leaves]
    output = packed_attention(
        *(part.tokens for part in parts), parts[0].cu_seqlens, parts[0].max_seqlen, backend=backend
    )
    assert output.shape == (0, 3, 8)
    unpack(output, parts[0].indices, 2, 17).sum().backward()
    assert leaves[2].grad is not None and float(leaves[2].grad.abs().max()) == 0


def test_what_does_not_fit_is_refused() -> None:
    tokens = torch.zeros(6, 2, 4)
    cu = torch.tensor([0, 2, 6], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"pass three of \(M, H, Dh\)"):
        packed_attention(tokens, tokens, tokens[:5], cu, 4)
    with pytest.raises(ValueError, match="pass int32"):
        packed_attention(tokens, tokens, tokens, cu.long(), 4)
    with pytest.raises(ValueError, match="ends at 5 for 6 tokens"):
        packed_attention(tokens, tokens, tokens, torch.tensor([0, 2, 5], dtype=torch.int32), 4)
    with pytest.raises(ValueError, match=r"pass bool \(2, 3\)"):
        pack(torch.zeros(2, 3, 4), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="pass the indices"):
        unpack(tokens, torch.arange(5), 2, 3)
