"""Triton kernel of the rotary turn: heads read once, written once, nothing kept between.

Only `rotary` imports this module, and only where it launches: CPU users need no Triton.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from cardialign.kernels.triton_support.launch import Launch

TOKENS = 32
"""Tokens of a program."""
VARYING = ["rows", "tokens", "table_rows", "x_record", "x_token", "x_part", "x_head", "y_token", "y_part"]


@triton.jit(do_not_specialize=VARYING)
def turn_kernel(
    X, COS, SIN, Y, rows, tokens, table_rows, x_record, x_token, x_part, x_head, y_token, y_part,
    SIGN: tl.constexpr, HEADS: tl.constexpr, TABLE_HEADS: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr,
    BT: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of tokens, parts): y = x cos + swap(x) SIGN sin, in float32.

    X                   (records, tokens, parts, HEADS, 2 HALF) by its strides x_record, x_token, x_part, x_head
    COS, SIN            (table_rows, TABLE_HEADS, 2 HALF) float32; the heads of a row are the same, sin is signed
    Y                   rows of HEADS x 2 HALF elements, y_token apart; the next part y_part further
    rows                records x tokens; row r reads row r modulo table_rows of the table
    SIGN                1 turns, -1 turns back
    WIDE                HALF rounded up to a power of two
    BT                  tokens of a program
    """
    row = tl.program_id(0) * BT + tl.arange(0, BT)
    part = tl.program_id(1).to(tl.int64)
    live = row < rows
    half = tl.arange(0, WIDE)
    mask = live[:, None] & (half < HALF)[None, :]
    place = (row % table_rows).to(tl.int64)[:, None] * (TABLE_HEADS * 2 * HALF) + half[None, :]
    cos = tl.load(COS + place, mask=mask, other=0.0)
    sin_first = tl.load(SIN + place, mask=mask, other=0.0) * SIGN
    sin_second = tl.load(SIN + place + HALF, mask=mask, other=0.0) * SIGN
    read = (row // tokens).to(tl.int64) * x_record + (row % tokens).to(tl.int64) * x_token + part * x_part
    write = row.to(tl.int64) * y_token + part * y_part
    for head in range(HEADS):
        x = X + (read + head * x_head)[:, None] + half[None, :]
        first = tl.load(x, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(x + HALF, mask=mask, other=0.0).to(tl.float32)
        y = Y + (write + head * 2 * HALF)[:, None] + half[None, :]
        tl.store(y, (first * cos + second * sin_first).to(Y.dtype.element_ty), mask=mask)
        tl.store(y + HALF, (second * cos + first * sin_second).to(Y.dtype.element_ty), mask=mask)


def turn_launch(x: Tensor, cos: Tensor, sin: Tensor, y: Tensor, back: bool) -> Launch:
    """x (B, N, P, H, Dh) of any strides but the last into y (B, N, P, H, Dh), of which only a token and a part may be
    further apart than they are long. cos, sin: (R, 1, H or 1, Dh), float32; R divides B N."""
    records, tokens, parts, heads, width = x.shape
    half = width // 2
    arguments = {
        "X": x,
        "COS": cos,
        "SIN": sin,
        "Y": y,
        "rows": records * tokens,
        "tokens": tokens,
        "table_rows": cos.numel() // (cos.shape[-2] * width),
        "x_record": x.stride(0),
        "x_token": x.stride(1),
        "x_part": x.stride(2),
        "x_head": x.stride(3),
        "y_token": y.stride(1),
        "y_part": y.stride(2),
    }
    constants = {
        "SIGN": -1 if back else 1,
        "HEADS": heads,
        "TABLE_HEADS": cos.shape[-2],
        "HALF": half,
        "WIDE": triton.next_power_of_2(half),
        "BT": TOKENS,
    }
    return Launch(turn_kernel, (triton.cdiv(records * tokens, TOKENS), parts), arguments, constants, 4, 2)


def turn(x: Tensor, cos: Tensor, sin: Tensor, y: Tensor, back: bool = False) -> None:
    """Run `turn_launch` on the device of x; nothing to do for no tokens."""
    if x.numel():
        with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
            turn_launch(x, cos, sin, y, back).run()
