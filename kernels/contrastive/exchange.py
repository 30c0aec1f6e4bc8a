"""How the columns of the global batch reach a rank's rows. One operation, three schemes, all exact.

Every loss of the family is written once, as a function of one block: the b rows here against the n columns of some ranks. A scheme calls it for
blocks that together cover all columns once, and brings what belongs to a column (its log-sum, the gradient of its text) home to its owner:
    Alone   one process: one block, nothing moves
    Gather  all columns are gathered, B x (d + d_s) numbers, and form one block; column results are joined by all-reduce
    Ring    the columns travel past the rows, two shards being held at a time (contrastive_ring)
So every logit is computed by exactly one rank in either pass (the weight of a pair sitting on a threshold cannot differ between its row
and its column), and no b x B matrix is ever held. Legend: W ranks, b local pairs, B global pairs, n columns of a block, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from cardialign.kernels.contrastive.similarity import Similarity

TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Merge = Literal["sum", "logsumexp"]
Visit = Callable[[Sequence[Tensor], int], Sequence[Tensor]]
"""(column tensors (n, ...), row offset: row i here is column offset + i of the block) -> results (n, ...) that belong to the columns."""


@dataclass(frozen=True)
class Layout:
    """Pairs per rank, and the rank of this process among them."""

    sizes: tuple[int, ...]
    rank: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def batch(self) -> int:
        """B, pairs of all ranks."""
        return sum(self.sizes)

    def start(self, rank: int) -> int:
        """Global index of a rank's first pair."""
        return sum(self.sizes[:rank])


class Exchange(Protocol):
    """A scheme bound to the layout of one batch."""

    layout: Layout

    def columns(self, mine: Sequence[Tensor], visit: Visit, merges: Sequence[Merge]) -> list[Tensor]:
        """Show every rank's `mine` (b, ...) to every rank's `visit`; return the merged results of this rank's own columns (b, ...)."""

    def total(self, value: Tensor) -> Tensor:
        """Sum over ranks, the same on all."""


class Alone:
    """One process."""

    def __init__(self, rows: int) -> None:
        self.layout = Layout((rows,))

    def columns(self, mine: Sequence[Tensor], visit: Visit, merges: Sequence[Merge]) -> list[Tensor]:
        return list(visit(mine, 0))

    def total(self, value: Tensor) -> Tensor:
        return value


class Gather:
    """Gather the columns, tile the logits. The backward pass gathers again: nothing of length B is kept between the passes."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def columns(self, mine: Sequence[Tensor], visit: Visit, merges: Sequence[Merge]) -> list[Tensor]:
        layout = self.layout
        start = layout.start(layout.rank)
        found = visit([gather_rows(tensor, layout) for tensor in mine], start)
        own = slice(start, start + layout.sizes[layout.rank])
        joined = []
        for result, merge in zip(found, merges, strict=True):
            if merge == "logsumexp":
                joined.append(_join_log_sums(result, layout.group)[own])
            else:
                dist.all_reduce(result, group=layout.group)
                joined.append(result[own].clone())  # a view would keep the rows of all ranks alive
        return joined

    def total(self, value: Tensor) -> Tensor:
        dist.all_reduce(value, group=self.layout.group)
        return value


def exchange_layout(
    ecg: Tensor, similarity: Similarity, group: dist.ProcessGroup | None, agreed: Mapping[str, int]
) -> Layout:
    """Pairs per rank. Raises the same ValueError on every rank when the ranks disagree about anything but that, or have no pair at all.

    agreed: further facts, as whole numbers, on which the collectives depend and which must therefore be the same on every rank.
    """
    features, key = similarity.features, similarity.duplicate_key
    facts = {
        "embedding width": ecg.shape[1],
        "embedding type": TYPES.index(ecg.dtype) if ecg.dtype in TYPES else len(TYPES),
        "similarity feature width": -1 if features is None else features.shape[1],
        "presence of duplicate keys": -1 if key is None else 1,
        **agreed,
    }
    mine = torch.tensor((ecg.shape[0], *facts.values()), dtype=torch.int64, device=ecg.device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    rows = torch.stack(everyone).tolist()
    for column, name in enumerate(facts, start=1):
        values = [row[column] for row in rows]
        if len(set(values)) > 1:
            raise ValueError(
                f"ranks disagree about the {name}: {dict(enumerate(values))}; give every rank the same configuration"
            )
    layout = Layout(tuple(row[0] for row in rows), dist.get_rank(group), group)
    if layout.batch == 0:
        raise ValueError("the global batch is empty; give at least one rank a pair")
    return layout


def gather_rows(rows: Tensor, layout: Layout) -> Tensor:
    """Rows of all ranks in rank order, (B, ...) from (b, ...); shorter shards are padded on the wire only."""
    padded = rows.new_zeros((max(layout.sizes), *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    received = [torch.empty_like(padded) for _ in layout.sizes]
    dist.all_gather(received, padded, group=layout.group)
    return torch.cat([part[:size] for part, size in zip(received, layout.sizes, strict=True)])


def _join_log_sums(partial: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """log sum exp over ranks of partial sums (B,), element by element; -inf where no rank has anything."""
    peak = partial.clone()
    dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
    anchor = peak.clamp(min=torch.finfo(peak.dtype).min)  # keeps -inf - -inf out
    total = (partial - anchor).exp()
    dist.all_reduce(total, group=group)
    return total.log() + anchor
