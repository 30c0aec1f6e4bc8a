"""Kernels of a few lines, for tests of the tools that kernels are tested with.

Import only where triton may be imported.
"""

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
