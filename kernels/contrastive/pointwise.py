"""The losses that judge every pair by itself: SigLIP with soft targets, ETS, false-negative mitigation.

With l_ij = exp(log_scale) v_i.t_j + bias (or v_i.t_j alone), f(l_ij) as in `torch_pointwise` and y_ij the target of the
pair (`soft_targets`; y_ii = 1 unless said otherwise):
    L = 1/n sum_ij f_ij,   dV = scale/n (df/dl) T,   dT = scale/n (df/dl)^T V
    d log_scale = 1/n sum df/dl (l - bias) = sum <v, dV>,   d bias = 1/n sum df/dl
No sum over the batch stands in a denominator, so the forward pass makes the gradients while it has the tile: loss and
gradient take one pass, nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cardialign.kernels.contrastive.blocks import Form, Judge
from cardialign.kernels.contrastive.exchange import pack, unpack
from cardialign.kernels.contrastive.plan import Plan
from cardialign.kernels.contrastive.similarity import Similarity
from cardialign.kernels.contrastive.soft_targets import SoftTargets, TargetTiles
from cardialign.kernels.contrastive.tiles import accumulation_dtype


@dataclass(frozen=True)
class PairLoss:
    """A pointwise loss but for its logits.

    form: what is made of a logit and a target. own (b,): targets of the matching pairs. similarity, targets: those of
    all other pairs. power: the mean is over B to the `power`.
    """

    form: Form
    own: Tensor
    similarity: Similarity
    targets: SoftTargets
    power: int


class PointwiseLoss(torch.autograd.Function):
    """Global loss, equal on every rank; gradients are d(global loss)/d(local tensor).

    Those of log_scale and bias are the global ones. log_scale, bias: one element each, or None for a scale of 1 and a
    bias of 0. gradients: whether any are wanted.
    """

    @staticmethod
    def forward(
        ctx: Any,
        ecg: Tensor,
        text: Tensor,
        log_scale: Tensor | None,
        bias: Tensor | None,
        pairs: PairLoss,
        plan: Plan,
        gradients: bool,
    ) -> Tensor:
        accumulate = accumulation_dtype(ecg, text)
        here, mean_over = pairs.similarity.with_dtype(accumulate), plan.batch**pairs.power
        d_ecg = torch.zeros(ecg.shape, dtype=accumulate, device=ecg.device) if gradients else None
        sums = ecg.new_zeros(3, dtype=torch.float64)

        def visit(columns: Sequence[Tensor], offset: int) -> list[Tensor]:
            t, there, _ = unpack(columns, pairs.similarity, accumulate)
            tiles = TargetTiles(here, there, pairs.targets, offset)
            terms = plan.blocks_for(ecg, t).terms(judge, ecg, t, tiles, gradients, plan.chunk)
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
            judge = Judge(pairs.form, scale, shift, pairs.own.to(accumulate))
            home = plan.exchange.columns(pack(text, pairs.similarity), visit, ("sum",) if gradients else ())
            totals = plan.exchange.total(sums) / mean_over
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
        return (*found, *[None] * 3)
