"""Rotary positions in seconds: tokens of all scales and sampling rates share one clock.

`rotary` is the plain formula; `turn_heads` is what an encoder calls, with a table that is made once per forward pass.
Legend: B sequences, N tokens, M tokens of packed sequences, H heads, Dh head width.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cardialign.kernels.dispatch import Backend, triton_by_default

# Seconds, from a beat's parts (0.1 s is a QRS complex) to a whole record.
# Tokens 50 ms apart still see the shortest period without aliasing.
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


def rotary(x: Tensor, seconds: Tensor, shortest: float = SHORTEST_PERIOD, longest: float = LONGEST_PERIOD) -> Tensor:
    """Turn queries or keys x (B, H, N, Dh) by their times in seconds, (N,) or (B, N); same shape and type.

    Computed in float32 or better. Dot products of turned queries and keys depend on time differences only.
    Raises ValueError for an odd Dh or times that do not match the tokens.
    Source: RoPE (Su et al. 2021), positions in seconds.
    """
    if seconds.shape not in ((x.shape[-2],), (x.shape[0], x.shape[-2])):
        raise ValueError(f"seconds has shape {tuple(seconds.shape)} for {x.shape[-2]} tokens; pass (N,) or (B, N)")
    cos, sin = rotary_table(seconds, x.shape[-1], shortest, longest)
    if seconds.ndim == 2:
        cos, sin = cos[:, None], sin[:, None]
    exact = torch.promote_types(x.dtype, torch.float32)
    cos, sin = cos.to(exact), sin.to(exact)
    first, second = x.to(exact).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Rotation(NamedTuple):
    """cos and sin, signed, over the whole head width: (..., N, 1, H or 1, Dh).

    The same for queries, keys and all layers.
    """

    cos: Tensor
    sin: Tensor


def rotation(seconds: Tensor, heads: int, head_width: int, dtype: torch.dtype) -> Rotation:
    """The table for tokens of `dtype` at times in seconds, (N,), (B, N) or, packed, (M,).

    Angles are made in float64, the table is kept in float32 or better.
    heads: given H heads the table is laid out for all of them, which the CPU reads in long runs; for packed tokens,
    where it would be as large as the tokens themselves, pass 1.
    Raises ValueError for an odd head width.
    """
    exact = torch.promote_types(dtype, torch.float32)
    cos, sin = (table.to(exact)[..., None, None, :] for table in rotary_table(seconds, head_width))
    shape = (*seconds.shape, 1, heads, head_width)
    return Rotation(*(torch.cat(halves, -1).expand(shape).contiguous() for halves in ((cos, cos), (-sin, sin))))


def turn_heads(qkv: Tensor, table: Rotation, backend: Backend = "auto") -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys turned, values as they are: three of (..., H, Dh).

    qkv: (B, N, 3, H, Dh), or packed (M, 3, H, Dh).
    Equal to `rotary` bit for bit, in value and in gradient. One pass over queries and keys together, nothing kept for
    the backward pass but the table, and gradients written straight to where the projection reads them.
    backend: "torch"; "triton", one launch instead of eight (CUDA, or Triton's interpreter; products and sums may be
    contracted, one rounding less); "auto", that where `cardialign.kernels.dispatch` allows it.
    Raises ValueError for a table that does not fit, and for a backend that cannot run here.
    """
    try:
        fits = torch.broadcast_shapes(table.cos.shape, qkv[..., :2, :, :].shape) == qkv[..., :2, :, :].shape
    except RuntimeError:
        fits = False
    if not fits or qkv.shape[-3] != 3:
        raise ValueError(
            f"a table {tuple(table.cos.shape)} does not fit qkv {tuple(qkv.shape)}; "
            "make it for its tokens and head width"
        )
    q, k, v = (_TurnHeadsFused if _fused(qkv, table, backend) else _TurnHeads).apply(qkv, *table)
    return q, k, v


def _fused(qkv: Tensor, table: Rotation, backend: Backend) -> bool:
    if backend == "torch" or (backend == "auto" and not (qkv.is_cuda and _allowed(qkv))):
        return False
    fits = qkv.dtype != torch.float64 and table.cos.shape[:-3] == qkv.shape[qkv.ndim - table.cos.ndim : -3]
    runs = importlib.util.find_spec("triton") is not None and (qkv.is_cuda or _interpreted())
    if backend == "triton" and not (fits and runs):
        raise ValueError(
            f"the triton backend turns float32, bfloat16 or float16 heads on CUDA, not {qkv.dtype} on {qkv.device}; "
            "choose backend auto or torch"
        )
    return fits and runs


def _allowed(qkv: Tensor) -> bool:
    return not torch.compiler.is_compiling() and triton_by_default("rotary", qkv.numel(), qkv.device)


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    exact = x.to(cos.dtype)
    first, second = exact.chunk(2, dim=-1)
    return (exact * cos).add_(torch.cat((second, first), dim=-1).mul_(sin)).to(x.dtype)


class _TurnHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        q, k = _turn(qkv[..., :2, :, :], cos, sin).unbind(-3)
        return q, k, qkv[..., 2, :, :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = (table.squeeze(-3) for table in ctx.saved_tensors)
        of_q, of_k, of_v = gradients
        turned_back = (_turn(of_q, cos, -sin), _turn(of_k, cos, -sin), of_v)
        return torch.stack(turned_back, dim=-3), None, None


class _TurnHeadsFused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from cardialign.kernels.attention.triton.turn import turn

        ctx.save_for_backward(cos, sin)
        turned = torch.empty_like(qkv[..., :2, :, :], memory_format=torch.contiguous_format)
        turn(_records(qkv[..., :2, :, :]), cos, sin, _records(turned))
        q, k = turned.unbind(-3)
        return q, k, qkv[..., 2, :, :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        from cardialign.kernels.attention.triton.turn import turn

        (cos, sin), (of_q, _, of_v) = ctx.saved_tensors, gradients
        found = of_q.new_empty((*of_q.shape[:-2], 3, *of_q.shape[-2:]))
        for part, gradient in enumerate(gradients[:2]):
            rows = gradient if gradient.stride(-1) == 1 else gradient.contiguous()
            turn(_records(rows[..., None, :, :]), cos, sin, _records(found[..., part : part + 1, :, :]), back=True)
        found[..., 2, :, :] = of_v
        return found, None, None


def _records(x: Tensor) -> Tensor:
    """(B, N, P, H, Dh); packed tokens are one record."""
    return x if x.ndim == 5 else x[None]
