"""A backend of the loss family: its block functions. Every scheme over ranks and every backend meets here and nowhere else.

A block is b rows of this rank against n columns: all B of the global batch, or those of one other rank. Row i and column tiles.row_offset + i
are a matching pair; row_offset may be negative or past the end, then there is none. The functions of TORCH say what each has to return.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from cardialign.kernels.contrastive.similarity import NegativeTiles
from cardialign.kernels.contrastive.soft_targets import TargetSums, TargetTiles, subtract_target_gradients, target_sums
from cardialign.kernels.contrastive.torch_pointwise import BlockTerms, Form, block_terms
from cardialign.kernels.contrastive.torch_softmax import BlockGradients, BlockSums, block_gradients, block_sums


class Blocks(NamedTuple):
    """Log-sums and gradients of the softmax losses, what soft targets add to both, and the terms of the pointwise losses."""

    sums: Callable[[Tensor, Tensor, Tensor, NegativeTiles, int], BlockSums]
    gradients: Callable[[Tensor, Tensor, Tensor, NegativeTiles, Tensor, Tensor, int], BlockGradients]
    target_sums: Callable[[Tensor, Tensor, Tensor, TargetTiles, int], TargetSums]
    subtract_target_gradients: Callable[[Tensor, Tensor, Tensor, Tensor, TargetTiles, Tensor, Tensor, int], None]
    terms: Callable[[Form, Tensor, Tensor, Tensor, Tensor, Tensor, TargetTiles, bool, int], BlockTerms]


TORCH = Blocks(block_sums, block_gradients, target_sums, subtract_target_gradients, block_terms)


def for_block(blocks: Blocks, rows: Tensor, columns: Tensor) -> Blocks:
    """Backends need not launch on nothing: a block of an empty shard is PyTorch's."""
    return blocks if len(rows) and len(columns) else TORCH
