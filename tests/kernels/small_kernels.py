"""Kernels of a few lines, for the tests of the tools that kernels are tested with. Import only where triton may be imported."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot_kernel(A, B, C, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(C + index, tl.dot(tl.load(A + index), tl.load(B + index), input_precision="ieee"))


@triton.jit
def cast_kernel(X, Y, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    tl.store(Y + index, tl.load(X + index).to(tl.bfloat16))


@triton.jit
def spilling_kernel(X, Y, SIZE: tl.constexpr):
    """Holds more than a thread has registers: every value is needed by every other."""
    index = tl.arange(0, SIZE)
    x = tl.load(X + index[:, None] * SIZE + index[None, :])
    for _ in range(4):
        x = tl.dot(x, x, input_precision="ieee") + tl.trans(x) * x
    tl.store(Y + index[:, None] * SIZE + index[None, :], x)
