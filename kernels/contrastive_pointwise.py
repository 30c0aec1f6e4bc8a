"""The losses that judge every pair by itself: SigLIP with soft targets, ETS, false-negative mitigation. Loss and gradient in one pass.

With l_ij = exp(log_scale) v_i.t_j + bias (or v_i.t_j alone) and y_ij the target of the pair (soft_targets; y_ii = 1 unless said otherwise):
    logistic   f = softplus(l) - y l,   df/dl = sigmoid(l) - y
    absolute   f = |l - y|,             df/dl = sign(l - y), 0 where they are equal
    L = 1/n sum_ij f_ij,   dV = scale/n (df/dl) T,   dT = scale/n (df/dl)^T V,   d log_scale = sum <v, dV>,   d bias = 1/n sum df/dl
No sum over the batch stands in a denominator, so the forward pass makes the gradients while it has the tile: nothing is computed twice.
Both forms are written without the differences that cancel (sigmoid(l) - 1 is -sigmoid(-l)): confident pairs keep exact gradients in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.contrastive_chunked import accumulation_dtype, spans
from kernels.contrastive_ranks import Exchange
from kernels.contrastive_softmax import pack, unpack
from kernels.similarity import Similarity
from kernels.soft_targets import SoftTargets, TargetTiles

Form = Literal["logistic", "absolute"]


class BlockTerms(NamedTuple):
    """Of one block: sum of f and of df/dl (0-dim float64), sum_j g_ij t_j (b, d) and sum_i g_ij v_i (n, d) or None, g = df/dl."""

    loss: Tensor
    slope: Tensor
    d_v: Tensor | None
    d_t: Tensor | None


def _judge(form: Form, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """f and df/dl of one tile (m, n)."""
    if form == "absolute":
        difference = logits - target
        return difference.abs(), difference.sign()
    small = logits.abs().neg_().exp_()
    loss = logits.relu().sub_(target * logits).add_(small.log1p())
    fraction = small.div_(1 + small)  # sigmoid(-|l|)
    return loss, torch.where(logits > 0, (1 - target).sub_(fraction), fraction - target)


def block_terms(
    form: Form, v: Tensor, t: Tensor, scale: Tensor, bias: Tensor, own: Tensor, tiles: TargetTiles, gradients: bool, chunk: int
) -> BlockTerms:
    """One pass over the tiles of v (b, d) against t (n, d). own (b,): the target of row i and its own column. scale, bias: 0-dim."""
    accumulate = scale.dtype
    loss, slope = (v.new_zeros((), dtype=torch.float64) for _ in range(2))
    d_v = torch.zeros(v.shape, dtype=accumulate, device=v.device) if gradients else None
    d_t = torch.zeros(t.shape, dtype=accumulate, device=t.device) if gradients else None
    for rows in spans(v.shape[0], chunk):
        v_tile = v[rows].to(accumulate)
        for columns in spans(t.shape[0], chunk):
            t_tile = t[columns].to(accumulate)
            logits = (v_tile * scale) @ t_tile.T
            logits += bias
            target = tiles.off_diagonal(rows, columns, logits)
            shift = tiles.diagonal(rows, columns)
            pairs = target.diagonal(shift)
            first = max(0, -shift)
            pairs.copy_(own[rows][first : first + len(pairs)])
            value, gradient = _judge(form, logits, target)
            loss += value.sum(dtype=torch.float64)
            slope += gradient.sum(dtype=torch.float64)
            if d_v is not None and d_t is not None:
                d_v[rows].addmm_(gradient, t_tile)
                d_t[columns].addmm_(gradient.T, v_tile)
    return BlockTerms(loss, slope, d_v, d_t)


class PointwiseLoss(torch.autograd.Function):
    """Global loss, equal on every rank; gradients are d(global loss)/d(local tensor), those of log_scale and bias the global ones.

    log_scale, bias: one element each, or None for 1 and 0. own (b,): targets of the matching pairs. mean_over: n of the formula. gradients: whether any are wanted.
    """

    @staticmethod
    def forward(
        ctx: Any,
        ecg: Tensor,
        text: Tensor,
        log_scale: Tensor | None,
        bias: Tensor | None,
        own: Tensor,
        form: Form,
        similarity: Similarity,
        targets: SoftTargets,
        mean_over: int,
        exchange: Exchange,
        gradients: bool,
        chunk: int,
    ) -> Tensor:
        accumulate = accumulation_dtype(ecg, text)
        here = similarity.with_dtype(accumulate)
        d_ecg = torch.zeros(ecg.shape, dtype=accumulate, device=ecg.device) if gradients else None
        sums = ecg.new_zeros(2, dtype=torch.float64)

        def visit(columns: Sequence[Tensor], offset: int) -> list[Tensor]:
            t, there, _ = unpack(columns, similarity, accumulate)
            tiles = TargetTiles(here, there, targets, offset)
            terms = block_terms(form, ecg, t, scale, shift, own.to(accumulate), tiles, gradients, chunk)
            sums.add_(torch.stack((terms.loss, terms.slope)))
            if d_ecg is None or terms.d_v is None or terms.d_t is None:
                return []
            d_ecg.add_(terms.d_v)
            return [terms.d_t]

        with torch.autocast(ecg.device.type, enabled=False):
            scale = ecg.new_ones((), dtype=accumulate) if log_scale is None else log_scale.to(accumulate).exp().reshape(())
            shift = ecg.new_zeros((), dtype=accumulate) if bias is None else bias.to(accumulate).reshape(())
            home = exchange.columns(pack(text, similarity), visit, ("sum",) if gradients else ())
            totals = exchange.total(sums) / mean_over
            if d_ecg is not None:
                (d_text,) = home
                d_ecg *= scale / mean_over
                d_text *= scale / mean_over
                d_log_scale = exchange.total((ecg.to(accumulate) * d_ecg).sum())
                ctx.save_for_backward(d_ecg, d_text, d_log_scale, totals[1].to(accumulate))
        ctx.operands = [None if x is None else (x.dtype, x.shape) for x in (ecg, text, log_scale, bias)]
        return totals[0].to(accumulate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        found = [
            None if operand is None else (gradient * grad_loss).to(operand[0]).reshape(operand[1])
            for gradient, operand in zip(ctx.saved_tensors, ctx.operands, strict=True)
        ]
        return (*found, *[None] * 8)
