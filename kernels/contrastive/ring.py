"""The ring: columns travel past the rows, so that a rank holds its own shard, the one at work and the one arriving.

Ranks stand in a circle and send to the right. At step s rank r works on the columns of rank k = (r - s) mod W:
    ahead    what `visit` reads (text, similarity features, keys; in the backward pass the column log-sums too). The next shard arrives while
             this one is at work: the buffers are double, and W - 1 steps show everything to everybody.
    behind   what belongs to the columns (their log-sums; the gradient of their text) follows one step later, is merged on arrival, and is
             home after W steps. It travels while the next block is at work as well, in the accumulation type.
Per step and rank: forward b x (d + d_s) feature numbers and b log-sums, backward b x d float32 more. Shards may be uneven or empty: sizes are
exchanged before, and an empty tensor is not sent. Sums are always taken in the same order: two runs give the same bits.
Source: ring exchange of blocks as in Inf-CL (Cheng et al. 2024), with both directions of the loss in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cardialign.kernels.contrastive.exchange import Layout, Merge, Visit


class Ring:
    """Memory of a rank: O(b (d + d_s)), whatever the number of ranks."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def columns(self, mine: Sequence[Tensor], visit: Visit, merges: Sequence[Merge]) -> list[Tensor]:
        layout = self.layout
        world = len(layout.sizes)
        start = layout.start(layout.rank)
        ahead = [tensor.contiguous() for tensor in mine]
        behind: list[Tensor] = []  # the merged results of the block of the step before, not yet sent on
        for step in range(world):
            owner = (layout.rank - step) % world
            sends = [*(ahead if step < world - 1 else []), *behind]
            arriving = (
                [_rows_for(tensor, layout.sizes[(owner - 1) % world]) for tensor in ahead] if step < world - 1 else []
            )
            merged = [_rows_for(tensor, layout.sizes[owner]) for tensor in behind]
            works = self._shift(sends, [*arriving, *merged])
            found = [result.contiguous() for result in visit(ahead, start - layout.start(owner))]
            for work in works:
                work.wait()
            behind = [_merge(a, b, how) for a, b, how in zip(merged, found, merges, strict=True)] if step else found
            ahead = arriving
        home = [_rows_for(tensor, layout.sizes[layout.rank]) for tensor in behind]
        for work in self._shift(behind, home):
            work.wait()
        return home

    def total(self, value: Tensor) -> Tensor:
        dist.all_reduce(value, group=self.layout.group)
        return value

    def _shift(self, sends: Sequence[Tensor], receives: Sequence[Tensor]) -> list[Any]:
        """Start sending to the right and receiving from the left, tensor by tensor in the same order."""
        group, world = self.layout.group, len(self.layout.sizes)
        right, left = (_global_rank((self.layout.rank + step) % world, group) for step in (1, -1))
        # Ranks walk the same list, so the position names a tensor; backends without tags match by order.
        operations = [
            dist.P2POp(dist.isend, tensor, right, group, tag) for tag, tensor in enumerate(sends) if tensor.numel()
        ]
        operations += [
            dist.P2POp(dist.irecv, tensor, left, group, tag) for tag, tensor in enumerate(receives) if tensor.numel()
        ]
        return dist.batch_isend_irecv(operations) if operations else []


def _rows_for(like: Tensor, rows: int) -> Tensor:
    return like.new_empty((rows, *like.shape[1:]))


def _merge(earlier: Tensor, later: Tensor, how: Merge) -> Tensor:
    return torch.logaddexp(earlier, later) if how == "logsumexp" else earlier.add_(later)


def _global_rank(rank: int, group: dist.ProcessGroup | None) -> int:
    return rank if group is None else dist.get_global_rank(group, rank)
