"""What an `Execution` comes to on one batch: how its columns travel, and who computes its blocks.

The one dispatch point of the family. Backends lie below: plain PyTorch always, the Triton blocks where they can run.
Importing those needs no triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cardialign.kernels.contrastive.blocks import Blocks
from cardialign.kernels.contrastive.exchange import Exchange, choose_exchange
from cardialign.kernels.contrastive.execution import Execution
from cardialign.kernels.contrastive.similarity import Similarity
from cardialign.kernels.contrastive.torch_pointwise import block_terms
from cardialign.kernels.contrastive.torch_softmax import (
    block_gradients,
    block_sums,
    subtract_target_gradients,
    target_sums,
)
from cardialign.kernels.contrastive.triton.backend import TRITON, available
from cardialign.kernels.dispatch import Backend, triton_by_default

TORCH = Blocks(block_sums, block_gradients, target_sums, subtract_target_gradients, block_terms)

TRITON_FROM_LOGITS = 1 << 20
"""Below, a launch costs more than the tiles (counted; 2^22 is the least that a GPU was asked about)."""


@dataclass(frozen=True)
class Plan:
    """exchange: the scheme, bound to the sizes of this batch. blocks: the backend. chunk: side of a tile, in pairs."""

    exchange: Exchange
    blocks: Blocks
    chunk: int

    @property
    def batch(self) -> int:
        """B, pairs of all ranks."""
        return self.exchange.layout.batch

    def blocks_for(self, rows: Tensor, columns: Tensor) -> Blocks:
        """Who computes this block. Backends need not launch on nothing: a block of an empty shard is PyTorch's."""
        return self.blocks if len(rows) and len(columns) else TORCH


def make_plan(
    ecg: Tensor, text: Tensor, similarity: Similarity, execution: Execution, agreed: Mapping[str, int]
) -> Plan:
    """The plan for this batch, its exchange the same on every rank; over ranks this is a collective.

    agreed: see `exchange_layout`.
    Raises ValueError for a batch without any pair, for ranks that disagree, and for a backend that cannot run here.
    """
    exchange = choose_exchange(ecg, text, similarity, execution, agreed)
    blocks = choose_blocks(execution.backend, ecg.device, len(ecg) * exchange.layout.batch)
    return Plan(exchange, blocks, execution.chunk)


def choose_blocks(backend: Backend, device: torch.device, logits: int) -> Blocks:
    """The block functions for `logits` = b x B logits on this rank.

    Raises ValueError when Triton is asked for and not available.
    """
    small = device.type == "cpu" or logits < TRITON_FROM_LOGITS
    if backend == "torch" or (backend == "auto" and (small or not triton_by_default("contrastive", logits, device))):
        return TORCH
    if available(device):
        return TRITON
    if backend == "triton":
        raise ValueError(f"the Triton backend is not available on {device}; use backend 'auto' or 'torch'")
    return TORCH
