"""What a backend must compute of one block. Every scheme over ranks and every backend meets here and nowhere else.

A block is b rows of this rank against n columns: all B of the global batch, or those of one other rank. Row i and
column tiles.row_offset + i are a matching pair; row_offset may be negative or past the end, then there is none. The
functions of `torch_softmax` and `torch_pointwise` say what each has to return. Width d; b and n may be 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from cardialign.kernels.contrastive.similarity import NegativeTiles
from cardialign.kernels.contrastive.soft_targets import TargetTiles

Form = Literal["logistic", "absolute"]


class BlockSums(NamedTuple):
    """Negatives-only log-sum-exp of a block along rows (b,) and columns (n,).

    alpha: the block's sum of alpha without the positives (0-dim float64).
    """

    rows: Tensor
    columns: Tensor
    alpha: Tensor


class BlockGradients(NamedTuple):
    """Sums over the negatives of a block.

    d_v: sum_j H_ij t_j (b, d). d_t: sum_i H_ij v_i (n, d). work: sum_ij H_ij s_ij (0-dim float64).
    """

    d_v: Tensor
    d_t: Tensor
    work: Tensor


class TargetSums(NamedTuple):
    """Sums over the other reports of a block: of y along rows (b,) and columns (n,), of y s along rows and columns."""

    row_mass: Tensor
    row_work: Tensor
    column_mass: Tensor
    column_work: Tensor


class Judge(NamedTuple):
    """How a pointwise loss judges a pair: f of its logit l = scale v.t + bias and of its target.

    scale, bias: 0-dim, in the accumulation type. own (b,): the target of row i and its own column.
    """

    form: Form
    scale: Tensor
    bias: Tensor
    own: Tensor


class BlockTerms(NamedTuple):
    """Of one block, g = df/dl: sums of f, of g and of the work g_ij scale v_i.t_j (0-dim float64 each).

    d_v, d_t: sum_j g_ij t_j (b, d) and sum_i g_ij v_i (n, d). None, and the work 0, where no gradients are wanted.
    """

    loss: Tensor
    slope: Tensor
    work: Tensor
    d_v: Tensor | None
    d_t: Tensor | None


class Blocks(NamedTuple):
    """A backend: log-sums and gradients of the softmax losses, what soft targets add to both, pointwise terms."""

    sums: Callable[[Tensor, Tensor, Tensor, NegativeTiles, int], BlockSums]
    gradients: Callable[[Tensor, Tensor, Tensor, NegativeTiles, Tensor, Tensor, int], BlockGradients]
    target_sums: Callable[[Tensor, Tensor, Tensor, TargetTiles, int], TargetSums]
    subtract_target_gradients: Callable[[Tensor, Tensor, Tensor, Tensor, TargetTiles, Tensor, Tensor, int], None]
    terms: Callable[[Judge, Tensor, Tensor, TargetTiles, bool, int], BlockTerms]
