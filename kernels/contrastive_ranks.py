"""The same loss over ranks: gather the text features, tile the logits.

Rank r holds b_r pairs (shards may be uneven, or empty). It gathers text features, similarity features and duplicate keys of all ranks,
B x (d + d_s) numbers, and computes its own rows against all columns, tile by tile, once:
    forward   row sums are complete; the partial column sums (B,) are joined by a maximum and a sum over ranks
    backward  d ecg is complete; the partial d text (B, d), accumulated in fp32, is summed over ranks and each keeps its own rows
So every logit is computed by exactly one rank (the weight of a pair sitting on a threshold cannot differ between its row and its
column), and the matrix is never held. Legend: W ranks, b local pairs, B global pairs, d width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.contrastive_chunked import accumulation_dtype, block_gradients, block_sums, positives
from kernels.similarity import NegativeTiles, NegativeWeights, Similarity


def shard_sizes(ecg: Tensor, similarity: Similarity, group: dist.ProcessGroup | None) -> list[int]:
    """Pairs per rank. Raises the same ValueError on every rank when the ranks disagree about anything but that."""
    features, key = similarity.features, similarity.duplicate_key
    mine = (ecg.shape[0], ecg.shape[1], -1 if features is None else features.shape[1], -1 if key is None else 1)
    layout = torch.tensor(mine, dtype=torch.int64, device=ecg.device)
    layouts = [torch.empty_like(layout) for _ in range(dist.get_world_size(group))]
    dist.all_gather(layouts, layout, group=group)
    rows = torch.stack(layouts).tolist()
    for column, name in ((1, "embedding width"), (2, "similarity feature width"), (3, "presence of duplicate keys")):
        values = [row[column] for row in rows]
        if len(set(values)) > 1:
            raise ValueError(f"ranks disagree about the {name}: {dict(enumerate(values))}; give every rank the same configuration")
    return [row[0] for row in rows]


def gather_rows(rows: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """Rows of all ranks in rank order, (sum(sizes), ...) from (sizes[rank], ...); shorter shards are padded on the wire only."""
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    received = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(received, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])


def join_log_sums(partial: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """log sum exp over ranks of partial sums (B,), element by element; -inf where no rank has anything."""
    peak = partial.clone()
    dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
    anchor = peak.clamp(min=torch.finfo(peak.dtype).min)  # keeps -inf - -inf out
    total = (partial - anchor).exp()
    dist.all_reduce(total, group=group)
    return total.log() + anchor


class RankedInfoNCE(torch.autograd.Function):
    """Loss over the global batch, equal on every rank; gradients are d(global loss)/d(local tensor), d log_scale the global one."""

    @staticmethod
    def forward(
        ctx: Any,
        ecg: Tensor,
        text: Tensor,
        log_scale: Tensor,
        similarity: Similarity,
        weights: NegativeWeights,
        chunk: int,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        accumulate = accumulation_dtype(ecg, text)
        sizes = shard_sizes(ecg, similarity, group)
        batch = sum(sizes)
        if batch == 0:
            raise ValueError("the global batch is empty; give at least one rank a pair")
        start = sum(sizes[: dist.get_rank(group)])
        mine = slice(start, start + ecg.shape[0])
        gathered = Similarity(
            similarity.kind,
            None if similarity.features is None else gather_rows(similarity.features, sizes, group),
            None if similarity.duplicate_key is None else gather_rows(similarity.duplicate_key, sizes, group),
        )
        tiles = NegativeTiles(similarity.with_dtype(accumulate), gathered.with_dtype(accumulate), weights, row_offset=start)
        all_text = gather_rows(text, sizes, group)
        with torch.autocast(ecg.device.type, enabled=False):
            scale = log_scale.to(accumulate).exp().reshape(())
            sums = block_sums(ecg, all_text, scale, tiles, chunk)
            pairs = positives(ecg, text, scale, sums.rows, join_log_sums(sums.columns, group)[mine])
        totals = torch.stack((pairs.loss.sum().double(), sums.alpha))
        dist.all_reduce(totals, group=group)
        column_lse = gather_rows(pairs.column_lse, sizes, group)
        ctx.save_for_backward(ecg, text, all_text, log_scale, pairs.row_lse, column_lse, pairs.pull)
        ctx.tiles, ctx.chunk, ctx.group, ctx.mine, ctx.batch = tiles, chunk, group, mine, batch
        effective = (totals[1] / batch).to(torch.float32)
        ctx.mark_non_differentiable(effective)
        return (totals[0] / (2 * batch)).to(accumulate), effective

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        ecg, text, all_text, log_scale, row_lse, column_lse, pull = ctx.saved_tensors
        with torch.autocast(ecg.device.type, enabled=False):
            scale = log_scale.to(pull.dtype).exp().reshape(())
            d_ecg, d_all_text = block_gradients(ecg, all_text, scale, ctx.tiles, row_lse, column_lse, ctx.chunk)
            dist.all_reduce(d_all_text, group=ctx.group)
            d_ecg -= pull[:, None] * text
            d_text = d_all_text[ctx.mine] - pull[:, None] * ecg
            unit = scale / (2 * ctx.batch)
            d_ecg *= unit
            d_text *= unit
            d_log_scale = (ecg.to(pull.dtype) * d_ecg).sum()
            dist.all_reduce(d_log_scale, group=ctx.group)
            # Only now the local factor: a rank may scale its loss, the sums over ranks must not see that.
            factor = grad_loss.to(pull.dtype)
            d_ecg, d_text, d_log_scale = d_ecg * factor, d_text * factor, d_log_scale * factor
        return (
            d_ecg.to(ecg.dtype),
            d_text.to(text.dtype),
            d_log_scale.to(log_scale.dtype).reshape(log_scale.shape),
            None,
            None,
            None,
            None,
        )


def ranked_infonce(
    ecg: Tensor,
    text: Tensor,
    log_scale: Tensor,
    similarity: Similarity,
    weights: NegativeWeights,
    chunk: int,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """Global loss and mean effective number of negatives (0-dim each); every rank of `group` must call it, forward and backward."""
    loss, effective = RankedInfoNCE.apply(ecg, text, log_scale, similarity, weights, chunk, group)
    return loss, effective
