"""How the columns of the global batch reach a rank's rows. One operation, three schemes, all exact.

Every loss of the family is written once, as a function of one block: the b rows here against the n columns of some
ranks. A scheme calls it for blocks that together cover all columns once, and brings what belongs to a column (its
log-sum, the gradient of its text) home to its owner:
    Alone   one process: one block, nothing moves
    Gather  all columns are gathered, B x (d + d_s) numbers, and form one block; column results are joined by all-reduce
    Ring    the columns travel past the rows, two shards being held at a time
So every logit is computed by exactly one rank in either pass: the weight of a pair sitting on a threshold cannot differ
between its row and its column. No b x B matrix is ever held.
Legend: W ranks, b local pairs, B global pairs, n columns of a block, d width, d_s width of the similarity features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from cardialign.kernels.contrastive.execution import Execution, Scheme
from cardialign.kernels.contrastive.similarity import Similarity
from cardialign.kernels.contrastive.tiles import accumulation_dtype

RING_ABOVE_BYTES = 1 << 30
"""Gathered text and similarity features plus the accumulated gradient of all text.

65,536 pairs, d 512, d_s 128 in bf16: 0.2 GiB.
"""

TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Merge = Literal["sum", "logsumexp"]
Visit = Callable[[Sequence[Tensor], int], Sequence[Tensor]]
"""Called with the column tensors (n, ...) of a block and its row offset: row i here is column offset + i of the block.

Returns results (n, ...) that belong to the columns.
"""


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
        """Show every rank's `mine` (b, ...) to every rank's `visit`.

        Returns the merged results of this rank's own columns (b, ...).
        """

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
    """Gather the columns, tile the logits.

    The backward pass gathers again: nothing of length B is kept between the passes.
    """

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


class Ring:
    """Columns travel past the rows: memory of a rank is O(b (d + d_s)), whatever the number of ranks.

    Ranks stand in a circle and send to the right. At step s rank r works on the columns of rank k = (r - s) mod W:
        ahead    what `visit` reads (text, similarity features, keys; in the backward pass the column log-sums too). The
                 next shard arrives while this one is at work: the buffers are double, and W - 1 steps show everything
                 to everybody.
        behind   what belongs to the columns (their log-sums; the gradient of their text) follows one step later, is
                 merged on arrival, and is home after W steps. It travels while the next block is at work as well, in
                 the accumulation type.
    Per step and rank: forward b x (d + d_s) feature numbers and b log-sums, backward b x d float32 more. Shards may be
    uneven or empty: sizes are exchanged before, and an empty tensor is not sent. Sums are always taken in the same
    order: two runs give the same bits.
    Source: ring exchange of blocks as in Inf-CL (Cheng et al. 2024), with both directions of the loss in one pass.
    """

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


def choose_exchange(
    ecg: Tensor, text: Tensor, similarity: Similarity, execution: Execution, agreed: Mapping[str, int]
) -> Exchange:
    """The scheme for this batch, the same on every rank; over ranks this is a collective.

    Sizes are exchanged, and `agreed`: see `exchange_layout`. Raises ValueError for a batch without any pair.
    """
    group, scheme = execution.group, execution.scheme
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1):
        if ecg.shape[0] == 0:
            raise ValueError("the batch is empty; pass at least one pair")
        return Alone(len(ecg))
    layout = exchange_layout(ecg, similarity, group, {"scheme": get_args(Scheme).index(scheme), **agreed})
    features = similarity.features
    per_pair = ecg.shape[1] * (text.element_size() + accumulation_dtype(ecg, text).itemsize)
    per_pair += 0 if features is None else features.shape[1] * features.element_size()
    ring = layout.batch * per_pair > RING_ABOVE_BYTES if scheme == "auto" else scheme == "ring"
    return Ring(layout) if ring else Gather(layout)


def exchange_layout(
    ecg: Tensor, similarity: Similarity, group: dist.ProcessGroup | None, agreed: Mapping[str, int]
) -> Layout:
    """Pairs per rank; over ranks a collective.

    agreed: further facts, as whole numbers, on which the collectives depend and which must therefore be the same on
    every rank.
    Raises the same ValueError on every rank when the ranks disagree about anything but the number of pairs, or have no
    pair at all.
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


def pack(text: Tensor, similarity: Similarity, *more: Tensor) -> list[Tensor]:
    """What other ranks read of this rank's columns: text and what is known about the reports, then `more`."""
    known = [tensor for tensor in (similarity.features, similarity.duplicate_key) if tensor is not None]
    return [text, *known, *more]


def unpack(
    columns: Sequence[Tensor], like: Similarity, dtype: torch.dtype
) -> tuple[Tensor, Similarity, Sequence[Tensor]]:
    """The inverse: text (n, d), the similarity of the columns with features in `dtype`, and the rest."""
    text, *rest = columns
    features = None if like.features is None else rest.pop(0)
    key = None if like.duplicate_key is None else rest.pop(0)
    return text, Similarity(like.kind, features, key).with_dtype(dtype), rest


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


def _rows_for(like: Tensor, rows: int) -> Tensor:
    return like.new_empty((rows, *like.shape[1:]))


def _merge(earlier: Tensor, later: Tensor, how: Merge) -> Tensor:
    return torch.logaddexp(earlier, later) if how == "logsumexp" else earlier.add_(later)


def _global_rank(rank: int, group: dist.ProcessGroup | None) -> int:
    return rank if group is None else dist.get_global_rank(group, rank)
