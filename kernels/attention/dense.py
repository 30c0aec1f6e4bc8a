"""Attention: one dispatch point over the libraries that compute it. We write none of our own.

Where nothing may be attended the result is exactly zero.
Shapes: B batch, H heads, N tokens, M keys, Dh head width, D = H * Dh. Masks are bool, True = may be attended.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cardialign.kernels.attention.backends import Available, Backend, choose_backend, first, flash_for, operands, probe


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
    *,
    backend: Backend = "auto",
    available: Available | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) v over the keys that may be attended: (B, H, N, Dh).

    q: (B, H, N, Dh). k, v: (B, H, M, Dh).
    key_mask: bool (B, M). A row of the batch without any key gives 0 with zero gradients.
    backend: `auto` takes the first of flash-attn and PyTorch's SDPA that serves the operands (`backends`); `math` is
    the reference.
    available: what `probe` found, if known.
    Raises ValueError for an unknown or unavailable backend and for masks that do not fit.
    """
    if key_mask is not None and (key_mask.dtype != torch.bool or key_mask.shape != (k.shape[0], k.shape[-2])):
        raise ValueError(
            f"key_mask is {key_mask.dtype} {tuple(key_mask.shape)}; "
            f"pass bool {(k.shape[0], k.shape[-2])}, True = may be attended"
        )
    about = operands(q, masked=key_mask is not None)
    available = probe(q.device) if available is None else available
    chosen = choose_backend(about, available, backend)
    if chosen == "flash":
        flash = flash_for(about, available)
        assert flash is not None
        return first(flash.dense(*(x.transpose(1, 2) for x in (q, k, v)))).transpose(1, 2)
    compute = F.scaled_dot_product_attention if chosen == "sdpa" else _math
    if key_mask is None:
        return compute(q, k, v)
    # A row without keys is computed over all of them and then replaced:
    # softmax over nothing would give NaN, here or in a gradient.
    some = key_mask.any(1)
    allowed = (key_mask | ~some[:, None])[:, None, None, :]
    return torch.where(
        some[:, None, None, None], compute(q, k, v, attn_mask=allowed), torch.zeros((), dtype=v.dtype, device=v.device)
    )


def _math(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    return torch.softmax(scores, dim=-1) @ v


def attention_pool(query: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pool tokens (B, N, D) into (B, D) by softmax(query . token / sqrt(Dh)); a record without tokens gives 0.

    query: (D,) for one head, or (H, Dh) with H * Dh = D, every head weighing its own part of the tokens.
    mask: bool (B, N), True = counts.
    Weights are computed in float32 for half-precision tokens.
    Raises ValueError when query or mask do not fit the tokens.
    """
    heads = query.reshape(1, -1) if query.ndim == 1 else query
    if heads.ndim != 2 or heads.numel() != tokens.shape[-1]:
        raise ValueError(
            f"query has shape {tuple(query.shape)} for tokens of width {tokens.shape[-1]}; "
            "pass (D,) or (H, Dh) with H * Dh = D"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != tokens.shape[:2]):
        raise ValueError(
            f"mask is {mask.dtype} {tuple(mask.shape)}; pass bool {tuple(tokens.shape[:2])}, True = counts"
        )
    parts = tokens.unflatten(-1, heads.shape)  # (B, N, H, Dh)
    scores = (parts * heads.to(tokens.dtype)).sum(-1) / math.sqrt(heads.shape[-1])  # (B, N, H)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is not None:
        some = mask.any(1, keepdim=True)
        scores = scores.masked_fill(~(mask | ~some)[:, :, None], -math.inf)
    weight = torch.softmax(scores, dim=1)
    if mask is not None:
        weight = weight * some[:, :, None]
    return torch.einsum("bnh,bnhd->bhd", weight.to(tokens.dtype), parts).flatten(1)
