"""Sequences of different lengths back to back, without padding: pack, attend within each sequence, unpack.

Legend: B sequences of up to N places, M tokens in all, H heads, Dh head width.
`cu_seqlens` int32 (B + 1,) holds where each sequence begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cardialign.kernels.attention.backends import Available, Backend, choose_backend, first, flash_for, operands, probe

WASTE = 8  # a bucket of the SDPA path holds sequences up to 1/8 shorter than its longest one


class Packed(NamedTuple):
    """The tokens that are there.

    tokens: (M, ...). cu_seqlens: int32 (B + 1,). max_seqlen: of the longest sequence.
    indices: int64 (M,), the place of every token among the B * N.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    indices: Tensor


def pack(tokens: Tensor, mask: Tensor) -> Packed:
    """Keep the tokens (B, N, ...) where mask bool (B, N) is True. Waits for the device once, for the number of tokens.

    Raises ValueError when the mask does not fit.
    """
    if mask.dtype != torch.bool or mask.shape != tokens.shape[:2]:
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}; pass bool {tuple(tokens.shape[:2])}, True = keep")
    lengths = mask.sum(1)
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    indices = mask.flatten().nonzero().squeeze(1)
    return Packed(tokens.flatten(0, 1)[indices], cu_seqlens, int(lengths.max()) if len(lengths) else 0, indices)


def unpack(tokens: Tensor, indices: Tensor, batch: int, length: int) -> Tensor:
    """Tokens (M, ...) back to (batch, length, ...), zeros at the places that were not kept.

    Raises ValueError when the numbers differ.
    """
    if indices.shape != tokens.shape[:1]:
        raise ValueError(f"{tokens.shape[0]} tokens for {indices.shape[0]} places; pass the indices that pack returned")
    places = tokens.new_zeros(batch * length, *tokens.shape[1:])
    return places.index_put((indices,), tokens).unflatten(0, (batch, length))


class Bucket(NamedTuple):
    """Sequences of about one length L.

    rows: int64 (n, L) into the tokens. mask: bool (n, L) of what is real; None: all of it.
    """

    rows: Tensor
    mask: Tensor | None


class BucketPlan(NamedTuple):
    """The buckets of the SDPA path.

    back: int64 (M,), where each token's output stands when theirs are laid end to end.
    """

    buckets: list[Bucket]
    back: Tensor


def plan_buckets(cu_seqlens: Tensor) -> BucketPlan:
    """Sequences of about equal length together, at most 1/8 padding, empty ones nowhere.

    One plan serves all layers; it copies cu_seqlens to the host.
    """
    starts = cu_seqlens.tolist()
    spans = sorted(((b - a, a) for a, b in pairwise(starts) if b > a), reverse=True)
    groups: list[list[tuple[int, int]]] = []
    for span in spans:
        if groups and span[0] >= groups[-1][0][0] * (WASTE - 1) / WASTE:
            groups[-1].append(span)
        else:
            groups.append([span])
    device = cu_seqlens.device
    buckets, back, done = [], torch.empty(starts[-1], dtype=torch.int64, device=device), 0
    for group in groups:
        lengths = torch.tensor([length for length, _ in group], device=device)[:, None]
        begin = torch.tensor([start for _, start in group], device=device)[:, None]
        place = torch.arange(group[0][0], device=device)[None]
        mask = place < lengths
        # Padding repeats the last token; nobody attends to it and nobody reads it.
        rows = begin + torch.minimum(place, lengths - 1)
        flat = done + torch.arange(rows.numel(), device=device).view_as(rows)
        back[rows[mask]] = flat[mask]
        done += rows.numel()
        buckets.append(Bucket(rows, None if group[-1][0] == group[0][0] else mask))
    return BucketPlan(buckets, back)


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    backend: Backend = "auto",
    plan: BucketPlan | None = None,
    available: Available | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) v within each sequence: q, k, v (M, H, Dh) -> (M, H, Dh).

    Equal to dense attention with a key mask.
    backend: `auto` takes flash-attn, `torch.nn.attention.varlen` or, on the CPU and in full precision, SDPA over
    buckets of equal length; `math` is the reference, with an M x M mask.
    plan: the buckets; give it when several layers share the sequences.
    available: what `probe` found, if known.
    Raises ValueError for operands that do not fit, and for a backend asked for by name that is not available.
    """
    _check(q, k, v, cu_seqlens)
    about = operands(q, packed=True)
    available = probe(q.device) if available is None else available
    chosen = choose_backend(about, available, backend)
    if q.shape[0] == 0:
        return v.clone()
    if chosen == "flash":
        flash = flash_for(about, available)
        assert flash is not None
        keywords = {
            "cu_seqlens_q": cu_seqlens,
            "cu_seqlens_k": cu_seqlens,
            "max_seqlen_q": max_seqlen,
            "max_seqlen_k": max_seqlen,
        }
        return first(flash.varlen(q, k, v, **keywords))
    if chosen == "varlen":
        assert available.varlen is not None
        return first(available.varlen(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen))
    if chosen == "math":
        return _block_diagonal(q, k, v, cu_seqlens)
    return _bucketed(q, k, v, plan if plan is not None else plan_buckets(cu_seqlens))


def _check(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> None:
    if q.ndim != 3 or not q.shape == k.shape == v.shape:
        shapes: Sequence[tuple[int, ...]] = [tuple(x.shape) for x in (q, k, v)]
        raise ValueError(f"q, k, v have shapes {', '.join(map(str, shapes))}; pass three of (M, H, Dh)")
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}; "
            "pass int32 (B + 1,), from 0 to the number of tokens"
        )
    if cu_seqlens.device.type == "cpu" and (int(cu_seqlens[-1]) != q.shape[0] or bool((cu_seqlens.diff() < 0).any())):
        raise ValueError(
            f"cu_seqlens ends at {int(cu_seqlens[-1])} for {q.shape[0]} tokens or falls; pass what pack returned"
        )


def _bucketed(q: Tensor, k: Tensor, v: Tensor, plan: BucketPlan) -> Tensor:
    outputs = []
    for rows, mask in plan.buckets:
        bucket_q, bucket_k, bucket_v = (x[rows].transpose(1, 2) for x in (q, k, v))  # (n, H, L, Dh)
        allowed = None if mask is None else mask[:, None, None, :]
        outputs.append(
            F.scaled_dot_product_attention(bucket_q, bucket_k, bucket_v, attn_mask=allowed)
            .transpose(1, 2)
            .flatten(0, 1)
        )
    return torch.cat(outputs)[plan.back]


def _block_diagonal(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    sequence = torch.repeat_interleave(torch.arange(len(cu_seqlens) - 1, device=q.device), cu_seqlens.diff().long())
    scores = torch.einsum("mhd,nhd->hmn", q, k) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(sequence[:, None] != sequence[None, :], -math.inf)
    return torch.einsum("hmn,nhd->mhd", torch.softmax(scores, dim=-1), v)
