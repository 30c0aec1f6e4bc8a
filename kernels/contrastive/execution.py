"""How a loss of the family is carried out.

It changes where the time and the memory go, never the value beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch.distributed as dist

from cardialign.kernels.dispatch import Backend

Scheme = Literal["auto", "gather", "ring"]


@dataclass(frozen=True)
class Execution:
    """Over which ranks, in tiles of which size, how the columns travel, and who computes a tile.

    group: None is the default group where torch.distributed is initialised, a single process otherwise.
    chunk: side of a tile, in pairs. Forward and backward hold chunk x chunk tiles, never b x B.
    scheme: how columns reach a rank (`exchange`): "gather", "ring", or "auto": ring where gathering would take more
        than `exchange.RING_ABOVE_BYTES` on a rank.
    backend: who computes the tiles (`plan`): "torch", "triton", or "auto": PyTorch, and Triton on CUDA from
        `plan.TRITON_FROM_LOGITS` logits on where `cardialign.kernels.dispatch` allows it.
    Raises ValueError for a chunk below 1 and for an unknown scheme or backend.
    """

    group: dist.ProcessGroup | None = None
    chunk: int = 1024
    scheme: Scheme = "auto"
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk {self.chunk} is not positive; choose the side of a tile, e.g. 1024")
        if self.scheme not in get_args(Scheme):
            raise ValueError(f"unknown scheme {self.scheme!r}; use one of {', '.join(get_args(Scheme))}")
        if self.backend not in get_args(Backend):
            raise ValueError(f"unknown backend {self.backend!r}; use one of {', '.join(get_args(Backend))}")


DEFAULT = Execution()
