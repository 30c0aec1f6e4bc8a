"""Keys that count more or less, against the sum written out, dense and packed; a weight of 1 changes nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cardialign.kernels.attention import attention, pack, packed_attention, unpack, weigh_keys

B, N, H, D = 3, 5, 2, 4


def operands() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, N, H, D, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3))
    weight = torch.rand(B, N, generator=generator, dtype=torch.float64)
    weight[0, 2], weight[1] = 0.0, 1.0
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[1, 3:], mask[2, 0] = False, False
    return q, k, v, weight.requires_grad_(), mask


def by_hand(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """(B, N, H, D), zeros at places that are not there."""
    out = torch.zeros(B, N, H, D, dtype=torch.float64)
    for b in range(B):
        there = [j for j in range(N) if mask[b, j]]
        for h in range(H):
            for i in there:
                raised = [
                    torch.exp((q[b, i, h] * k[b, j, h]).sum() / math.sqrt(D)) * (weight[b, j] + 1e-6) for j in there
                ]
                total = sum(raised)
                row = sum(r / total * v[b, j, h] for r, j in zip(raised, there, strict=True))
                out = out.index_put((torch.tensor(b), torch.tensor(i), torch.tensor(h)), row)
    return out


def dense(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    wide = (x.transpose(1, 2) for x in weigh_keys(q, k, v, weight))
    return attention(*wide, mask).transpose(1, 2)[..., :D] * mask[:, :, None, None]


def packed(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    _, cu_seqlens, longest, indices = pack(q, mask)
    q, k, v = (x.flatten(0, 1)[indices] for x in (q, k, v))
    mixed = packed_attention(*weigh_keys(q, k, v, weight.flatten()[indices]), cu_seqlens, longest)
    return unpack(mixed[..., :D], indices, B, N)


def test_value_and_gradient_are_those_of_the_sum_written_out() -> None:
    *leaves, mask = operands()
    expected = by_hand(*leaves, mask)
    size = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad((expected * size).sum(), leaves)
    for compute in (dense, packed):
        found = compute(*leaves, mask)
        torch.testing.assert_close(found, expected)
        for mine, theirs in zip(torch.autograd.grad((found * size).sum(), leaves), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_a_weight_of_one_changes_nothing() -> None:
    q, k, v, _, mask = operands()
    plain = attention(*(x.transpose(1, 2) for x in (q, k, v)), mask).transpose(1, 2) * mask[:, :, None, None]
    torch.testing.assert_close(dense(q, k, v, torch.ones(B, N, dtype=torch.float64), mask), plain)
