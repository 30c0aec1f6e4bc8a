"""What all tiles of a loss share: how rows and columns are cut, and the type in which sums are kept."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def spans(total: int, chunk: int) -> Iterator[slice]:
    """Consecutive slices of at most `chunk` that cover range(total)."""
    for start in range(0, total, chunk):
        yield slice(start, min(start + chunk, total))


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 when any operand is float64, float32 otherwise: bf16 and fp16 operands are accumulated in float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
