"""Attention over tokens that carry a time: rotary positions in seconds, one dispatch point, exact zeros where nothing may be attended.

Shapes: B batch, H heads, N tokens, M keys, Dh head width, D = H * Dh. Masks are bool, True = may be attended.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention_backends import Available, Backend, choose_backend, first, flash_for, operands, probe

# A beat's parts (0.1 s is a QRS complex) to a whole record: tokens 50 ms apart still see the shortest period without aliasing.
SHORTEST_PERIOD = 0.1
LONGEST_PERIOD = 20.0


def rotary_table(
    seconds: Tensor, head_width: int, shortest: float = SHORTEST_PERIOD, longest: float = LONGEST_PERIOD
) -> tuple[Tensor, Tensor]:
    """cos and sin (..., N, head_width / 2), float64, for times (..., N); periods in seconds, spaced evenly in log.

    Raises ValueError for an odd head width or periods out of order.
    """
    if head_width % 2:
        raise ValueError(f"head width {head_width} is odd; rotary positions turn pairs, choose an even head width")
    if not 0 < shortest <= longest:
        raise ValueError(f"periods {shortest:g} to {longest:g} s are not ordered; choose 0 < shortest <= longest")
    pairs = head_width // 2
    exponent = torch.arange(pairs, device=seconds.device, dtype=torch.float64) / max(pairs - 1, 1)
    frequency = (longest / shortest) ** -exponent / shortest
    # Turns in float64: 10 s at 0.1 s are 100 turns, and only their fraction matters.
    angle = (2 * math.pi) * torch.frac(seconds.to(torch.float64)[..., None] * frequency)
    return angle.cos(), angle.sin()


def rotation(seconds: Tensor, head_width: int, dtype: torch.dtype, axis: int) -> tuple[Tensor, Tensor]:
    """The table that `rotate` takes for tokens of `dtype`: computed in float64, kept in float32 or better.

    axis: where the heads stand in the tokens to turn, counted from the end: -3 for (B, H, N, Dh), -2 for packed (M, H, Dh). It is the same for
    queries, keys and all layers: compute it once per forward pass. Raises ValueError for an odd head width.
    """
    exact = torch.promote_types(dtype, torch.float32)
    cos, sin = (table.to(exact) for table in rotary_table(seconds, head_width))
    if axis == -3 and seconds.ndim == 1:  # (N, Dh / 2) already lines up with (B, H, N, Dh)
        return cos, sin
    return cos.unsqueeze(axis), sin.unsqueeze(axis)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys x (..., Dh) by a table (cos, sin) that lines up with (..., Dh / 2); same shape and type, computed in the table's."""
    cos, sin = table
    first_half, second_half = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((first_half * cos - second_half * sin, second_half * cos + first_half * sin), dim=-1).to(x.dtype)


def rotary(x: Tensor, seconds: Tensor, shortest: float = SHORTEST_PERIOD, longest: float = LONGEST_PERIOD) -> Tensor:
    """Turn queries or keys x (B, H, N, Dh) by their times in seconds, (N,) or (B, N); same shape and type.

    Dot products of turned queries and keys depend on time differences only, so scales and sampling rates share one clock.
    Raises ValueError for an odd Dh or times that do not match the tokens. Source: RoPE (Su et al. 2021), positions in seconds.
    """
    if seconds.shape not in ((x.shape[-2],), (x.shape[0], x.shape[-2])):
        raise ValueError(f"seconds has shape {tuple(seconds.shape)} for {x.shape[-2]} tokens; pass (N,) or (B, N)")
    cos, sin = rotary_table(seconds, x.shape[-1], shortest, longest)
    if seconds.ndim == 2:
        cos, sin = cos[:, None], sin[:, None]
    exact = torch.promote_types(x.dtype, torch.float32)
    return rotate(x, (cos.to(exact), sin.to(exact)))


def attention(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, *, backend: Backend = "auto", available: Available | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) v over the keys that may be attended: (B, H, N, Dh).

    q (B, H, N, Dh); k, v (B, H, M, Dh); key_mask bool (B, M). A row of the batch without any key gives 0 with zero gradients.
    backend: `auto` takes the first of flash-attn and PyTorch's SDPA that serves the operands (`attention_backends`); `math` is the reference.
    available: what `probe` found, if known. Raises ValueError for an unknown or unavailable backend and for masks that do not fit.
    """
    if key_mask is not None and (key_mask.dtype != torch.bool or key_mask.shape != (k.shape[0], k.shape[-2])):
        raise ValueError(
            f"key_mask is {key_mask.dtype} {tuple(key_mask.shape)}; pass bool {(k.shape[0], k.shape[-2])}, True = may be attended"
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
    # A row without keys is computed over all of them and then replaced: softmax over nothing would give NaN, here or in a gradient.
    some = key_mask.any(1)
    allowed = (key_mask | ~some[:, None])[:, None, None, :]
    return torch.where(some[:, None, None, None], compute(q, k, v, attn_mask=allowed), torch.zeros((), dtype=v.dtype, device=v.device))


def _math(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    return torch.softmax(scores, dim=-1) @ v


def attention_pool(query: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pool tokens (B, N, D) into (B, D) by softmax(query . token / sqrt(Dh)); a record without tokens gives 0.

    query: (D,) for one head, or (H, Dh) with H * Dh = D, every head weighing its own part of the tokens. mask: bool (B, N), True = counts.
    Weights are computed in float32 for half-precision tokens. Raises ValueError when query or mask do not fit the tokens.
    """
    heads = query.reshape(1, -1) if query.ndim == 1 else query
    if heads.ndim != 2 or heads.numel() != tokens.shape[-1]:
        raise ValueError(
            f"query has shape {tuple(query.shape)} for tokens of width {tokens.shape[-1]}; pass (D,) or (H, Dh) with H * Dh = D"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != tokens.shape[:2]):
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}; pass bool {tuple(tokens.shape[:2])}, True = counts")
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
