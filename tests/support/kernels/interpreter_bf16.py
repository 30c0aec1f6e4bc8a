"""Repair what Triton's interpreter gets wrong about bfloat16, for tests only; nothing of this runs in compiled kernels.

The interpreter keeps bfloat16 as 16-bit integers. Two operations forget that (triton 3.6 to 3.9):
    tl.dot    multiplies the bit patterns as integers: values of 1e9 and no error raised
              (triton-lang/triton issue 11584, closed as unsupported)
    x.to(tl.bfloat16)   from float32 cuts the low half off, where every GPU rounds to nearest, ties to even
A product of two bfloat16 numbers is exact in float32, so widening and multiplying in float32 is what tensor cores do,
up to the order of sums.
`tests/support/kernels/test_interpreter_bf16.py` fails when the repair stops working, and when it stops being needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_Builder = interpreter.InterpreterBuilder
_plain_dot, _plain_truncation = _Builder.create_dot, _Builder.create_fp_trunc


def widened(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bit patterns (uint16)."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns (uint16) of float32 values: to nearest, ties to even; every NaN becomes the quiet one."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    carry = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    with np.errstate(over="ignore"):
        nearest = ((bits + carry) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest).reshape(values.shape)


def _dot(self: Any, a: Any, b: Any, accumulator: Any, *rest: Any) -> Any:
    kinds = (a.dtype.scalar, b.dtype.scalar)
    if tl.bfloat16 not in kinds:
        return _plain_dot(self, a, b, accumulator, *rest)
    if kinds != (tl.bfloat16, tl.bfloat16) or accumulator.dtype.scalar != tl.float32:
        raise TypeError(
            f"a dot of {kinds[0]} and {kinds[1]} into {accumulator.dtype.scalar} is none that tensor cores have"
        )
    product = np.matmul(widened(a.data), widened(b.data))
    return interpreter.TensorHandle(product + accumulator.data, accumulator.dtype.scalar)


def _truncation(self: Any, source: Any, target: Any) -> Any:
    if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
        return interpreter.TensorHandle(rounded(source.data), target.scalar)
    return _plain_truncation(self, source, target)


def install() -> None:
    """Put the repair in place for this process."""
    _Builder.create_dot, _Builder.create_fp_trunc = _dot, _truncation


def remove() -> None:
    """The interpreter as it was shipped."""
    _Builder.create_dot, _Builder.create_fp_trunc = _plain_dot, _plain_truncation
