"""The losses that divide by a sum over the batch, over any number of ranks.

InfoNCE, DiagSim-weighted InfoNCE and soft-target cross-entropy. With r_i, c_j the negatives' log-sums of
`torch_softmax` and, for soft targets, the sums over the other reports N_i = sum_{j!=i} y_ij and A_i = sum_{j!=i} y_ij
s_ij, Z_i = 1 + N_i, and N', A', Z' the same along columns:
    hard   L = 1/(2B) sum_i softplus(r_i - s_ii) + softplus(c_i - s_ii)
    soft   L = 1/(2B) sum_i H(y_i. / Z_i, softmax of row i) + H(y_.i / Z'_i, softmax of column i)
             = hard - 1/(2B) sum_i (A_i - N_i s_ii) / Z_i + (A'_i - N'_i s_ii) / Z'_i
so both share the log-sums, and with hard labels nothing of the second line remains. H is the cross-entropy.
The gradient of log_scale is the work sum_ij G_ij s_ij. It equals sum_i <v_i, dV_i>, but a backend may round the G of dV
to half precision; the work it sums before that. The soft labels' share of it is their share of the loss, which is
linear in s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cardialign.kernels.contrastive.exchange import Merge, pack, unpack
from cardialign.kernels.contrastive.plan import Plan
from cardialign.kernels.contrastive.similarity import NegativeTiles, NegativeWeights, Similarity
from cardialign.kernels.contrastive.soft_targets import SoftTargets, TargetTiles
from cardialign.kernels.contrastive.tiles import accumulation_dtype


class SoftmaxLoss(torch.autograd.Function):
    """Global loss, equal on every rank; gradients are d(global loss)/d(local tensor), d log_scale the global one.

    Saves the operands and three to five vectors of length b; the backward pass recomputes the tiles.
    """

    @staticmethod
    def forward(
        ctx: Any,
        ecg: Tensor,
        text: Tensor,
        log_scale: Tensor,
        similarity: Similarity,
        weights: NegativeWeights,
        targets: SoftTargets | None,
        plan: Plan,
    ) -> tuple[Tensor, Tensor]:
        accumulate = accumulation_dtype(ecg, text)
        here = similarity.with_dtype(accumulate)
        row_lse = ecg.new_full((len(ecg),), -math.inf, dtype=accumulate)
        row_mass, row_work = (torch.zeros_like(row_lse) for _ in range(2))
        alpha_sum = ecg.new_zeros((), dtype=torch.float64)

        def visit(columns: Sequence[Tensor], offset: int) -> list[Tensor]:
            t, there, _ = unpack(columns, similarity, accumulate)
            tiles = NegativeTiles(here, there, weights, offset)
            of_block = plan.blocks_for(ecg, t)
            sums = of_block.sums(ecg, t, scale, tiles, plan.chunk)
            row_lse.copy_(torch.logaddexp(row_lse, sums.rows))
            alpha_sum.add_(tiles.others(len(ecg), len(t)) if tiles.trivial else sums.alpha)
            if targets is None:
                return [sums.columns]
            matches = of_block.target_sums(ecg, t, scale, TargetTiles(here, there, targets, offset), plan.chunk)
            row_mass.add_(matches.row_mass)
            row_work.add_(matches.row_work)
            return [sums.columns, matches.column_mass, matches.column_work]

        with torch.autocast(ecg.device.type, enabled=False):
            scale = log_scale.to(accumulate).exp().reshape(())
            merges: tuple[Merge, ...] = ("logsumexp",) if targets is None else ("logsumexp", "sum", "sum")
            column_lse, *column_matches = plan.exchange.columns(pack(text, similarity), visit, merges)
            pairs = positives(ecg, text, scale, row_lse, column_lse)
            loss, pull, shares = pairs.loss, pairs.pull, []
            own_work = pull * pairs.logit
            for mass, work in ((row_mass, row_work), tuple(column_matches)) if targets is not None else ():
                share = 1 / (1 + mass)
                soft = (work - mass * pairs.logit) * share
                loss, own_work = loss - soft, own_work + soft
                pull = pull - mass * share
                shares.append(share)
            totals = plan.exchange.total(torch.stack((loss.sum(dtype=torch.float64), alpha_sum)))
        ctx.save_for_backward(
            ecg, text, log_scale, pairs.row_lse, pairs.column_lse, pull, own_work.sum(dtype=torch.float64), *shares
        )
        ctx.similarity, ctx.weights, ctx.targets, ctx.plan = similarity, weights, targets, plan
        effective = (totals[1] / plan.batch).to(torch.float32)
        ctx.mark_non_differentiable(effective)
        return (totals[0] / (2 * plan.batch)).to(accumulate), effective

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        ecg, text, log_scale, row_lse, column_lse, pull, own_work, *shares = ctx.saved_tensors
        similarity, targets, plan = ctx.similarity, ctx.targets, ctx.plan
        accumulate = pull.dtype
        here = similarity.with_dtype(accumulate)
        d_ecg = torch.zeros(ecg.shape, dtype=accumulate, device=ecg.device)
        work = -own_work

        def visit(columns: Sequence[Tensor], offset: int) -> list[Tensor]:
            t, there, (column_sums, *column_share) = unpack(columns, similarity, accumulate)
            tiles = NegativeTiles(here, there, ctx.weights, offset)
            of_block = plan.blocks_for(ecg, t)
            d_rows, d_columns, block_work = of_block.gradients(ecg, t, scale, tiles, row_lse, column_sums, plan.chunk)
            if targets is not None:
                matches = TargetTiles(here, there, targets, offset)
                of_block.subtract_target_gradients(
                    d_rows, d_columns, ecg, t, matches, shares[0], column_share[0], plan.chunk
                )
            d_ecg.add_(d_rows)
            work.add_(block_work)
            return [d_columns]

        with torch.autocast(ecg.device.type, enabled=False):
            scale = log_scale.to(accumulate).exp().reshape(())
            (d_text,) = plan.exchange.columns(pack(text, similarity, column_lse, *shares[1:]), visit, ("sum",))
            d_ecg -= pull[:, None] * text
            d_text -= pull[:, None] * ecg
            unit = scale / (2 * plan.batch)
            d_ecg *= unit
            d_text *= unit
            d_log_scale = plan.exchange.total(work).to(accumulate) / (2 * plan.batch)
            # Only now the local factor: a rank may scale its loss, the sums over ranks must not see that.
            factor = grad_loss.to(accumulate)
            d_ecg *= factor
            d_text *= factor
            d_log_scale = d_log_scale * factor
        return (
            d_ecg.to(ecg.dtype),
            d_text.to(text.dtype),
            d_log_scale.to(log_scale.dtype).reshape(log_scale.shape),
            *[None] * 4,
        )


class Positives(NamedTuple):
    """Terms of the matching pairs (b,): s_ii, their loss, the sums R and C including the positive, and -2B G_ii."""

    logit: Tensor
    loss: Tensor
    row_lse: Tensor
    column_lse: Tensor
    pull: Tensor


def positives(v: Tensor, t: Tensor, scale: Tensor, rows: Tensor, columns: Tensor) -> Positives:
    """Combine the negatives' sums of matching rows and columns with s_ii.

    Rows without negatives (-inf) give 0, never NaN.
    """
    s = (v.to(scale.dtype) * t.to(scale.dtype)).sum(1) * scale
    zero = torch.zeros_like(s)
    return Positives(
        s,
        # softplus; F.softplus turns linear above 20, which float64 would see
        torch.logaddexp(rows - s, zero) + torch.logaddexp(columns - s, zero),
        torch.logaddexp(rows, s),
        torch.logaddexp(columns, s),
        torch.sigmoid(rows - s) + torch.sigmoid(columns - s),
    )
