"""The losses that judge every pair by itself: SigLIP with soft targets, ETS, false-negative mitigation. Loss and gradient in one pass.

With l_ij = exp(log_scale) v_i.t_j + bias (or v_i.t_j alone), f(l_ij) as in contrastive_terms and y_ij the target of the pair (soft_targets;
y_ii = 1 unless said otherwise):
    L = 1/n sum_ij f_ij,   dV = scale/n (df/dl) T,   dT = scale/n (df/dl)^T V
    d log_scale = 1/n sum df/dl (l - bias) = sum <v, dV>,   d bias = 1/n sum df/dl
No sum over the batch stands in a denominator, so the forward pass makes the gradients while it has the tile: nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cardialign.kernels.contrastive.blocks import Blocks, for_block
from cardialign.kernels.contrastive.exchange import Exchange
from cardialign.kernels.contrastive.similarity import Similarity
from cardialign.kernels.contrastive.soft_targets import SoftTargets, TargetTiles
from cardialign.kernels.contrastive.softmax import pack, unpack
from cardialign.kernels.contrastive.torch_pointwise import Form
from cardialign.kernels.contrastive.torch_softmax import accumulation_dtype


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
        blocks: Blocks,
        chunk: int,
    ) -> Tensor:
        accumulate = accumulation_dtype(ecg, text)
        here = similarity.with_dtype(accumulate)
        d_ecg = torch.zeros(ecg.shape, dtype=accumulate, device=ecg.device) if gradients else None
        sums = ecg.new_zeros(3, dtype=torch.float64)

        def visit(columns: Sequence[Tensor], offset: int) -> list[Tensor]:
            t, there, _ = unpack(columns, similarity, accumulate)
            tiles = TargetTiles(here, there, targets, offset)
            of_block = for_block(blocks, ecg, t)
            terms = of_block.terms(form, ecg, t, scale, shift, own.to(accumulate), tiles, gradients, chunk)
            sums.add_(torch.stack((terms.loss, terms.slope, terms.work)))
            if d_ecg is None or terms.d_v is None or terms.d_t is None:
                return []
            d_ecg.add_(terms.d_v)
            return [terms.d_t]

        with torch.autocast(ecg.device.type, enabled=False):
            scale = (
                ecg.new_ones((), dtype=accumulate) if log_scale is None else log_scale.to(accumulate).exp().reshape(())
            )
            shift = ecg.new_zeros((), dtype=accumulate) if bias is None else bias.to(accumulate).reshape(())
            home = exchange.columns(pack(text, similarity), visit, ("sum",) if gradients else ())
            totals = exchange.total(sums) / mean_over
            if d_ecg is not None:
                (d_text,) = home
                d_ecg *= scale / mean_over
                d_text *= scale / mean_over
                ctx.save_for_backward(d_ecg, d_text, totals[2].to(accumulate), totals[1].to(accumulate))
        ctx.operands = [None if x is None else (x.dtype, x.shape) for x in (ecg, text, log_scale, bias)]
        return totals[0].to(accumulate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        found = [
            None if operand is None else (gradient * grad_loss).to(operand[0]).reshape(operand[1])
            for gradient, operand in zip(ctx.saved_tensors, ctx.operands, strict=True)
        ]
        return (*found, *[None] * 9)
