"""The losses that judge every pair by itself, tile by tile: the block function in plain PyTorch.

With y_ij the target of a pair (`soft_targets`; that of a matching pair is given):
    logistic   f = softplus(l) - y l,   df/dl = sigmoid(l) - y
    absolute   f = |l - y|,             df/dl = sign(l - y), 0 where they are equal
Both are written without the differences that cancel (sigmoid(l) - 1 is -sigmoid(-l)): confident pairs keep exact
gradients in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cardialign.kernels.contrastive.blocks import BlockTerms, Form, Judge
from cardialign.kernels.contrastive.soft_targets import TargetTiles
from cardialign.kernels.contrastive.tiles import spans


def _judge(form: Form, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """f and df/dl of one tile (m, n)."""
    if form == "absolute":
        difference = logits - target
        return difference.abs(), difference.sign()
    small = logits.abs().neg_().exp_()
    loss = logits.relu().sub_(target * logits).add_(small.log1p())
    fraction = small.div_(1 + small)  # sigmoid(-|l|)
    return loss, torch.where(logits > 0, (1 - target).sub_(fraction), fraction - target)


def block_terms(judge: Judge, v: Tensor, t: Tensor, tiles: TargetTiles, gradients: bool, chunk: int) -> BlockTerms:
    """One pass over the tiles of v (b, d) against t (n, d). gradients: whether d_v and d_t are wanted."""
    form, scale, bias, own = judge
    accumulate = scale.dtype
    loss, slope, work = (v.new_zeros((), dtype=torch.float64) for _ in range(3))
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
        if d_v is not None:
            work += (v_tile * d_v[rows]).sum(dtype=torch.float64)
    return BlockTerms(loss, slope, work * scale, d_v, d_t)
