"""The beat level: every sentence looks for the beats that it is about, in every ECG of the global batch.

For ECG i with views e_ik (unit vectors) and report j with sentences t_js (unit vectors):
    a_ijsk = softmax_k(beat_scale e_ik.t_js),   c_ijs = sum_k a_ijsk e_ik
    m_ij   = match_scale log sum_s exp(sentence_scale cos(c_ijs, t_js))
    L      = 1/2n sum_i [log sum_j exp(m_ij) - m_ii] + 1/2n sum_j [log sum_i exp(m_ij) - m_jj]
over the n records whose report has a sentence; ECGs of the others are compared with the reports of these, their reports
with nothing. That is GLoRIA (Huang et al. 2021) with beats for regions and sentences for words.
Ours: over the global batch, in blocks, where the released code compares the records of one GPU in a loop over reports;
unit vectors in the attention too; both directions averaged, as at the rhythm level.
Legend: b records of this rank, B of all ranks, Q views, S sentences, E width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cardialign.pretrain.methods.parts.gathering import gathered, total


class Scales(NamedTuple):
    """What cosines are multiplied by, see the formula."""

    beat: float
    sentence: float
    match: float


def sentence_cosines(views: Tensor, sentences: Tensor, beat_scale: float) -> Tensor:
    """views (b, Q, E), sentences (n, S, E) -> cos(c_ijs, t_js), (b, n, S).

    c itself, b n S E numbers, is never made: its product with t is a sum of known products, and its length follows from
    the products of the views among each other.
    """
    Q, S = views.shape[1], sentences.shape[1]
    products = (views.flatten(0, 1) @ sentences.flatten(0, 1).T).unflatten(0, (-1, Q)).unflatten(-1, (-1, S))
    products = products.permute(0, 2, 3, 1)  # (b, n, S, Q)
    weights = torch.softmax(beat_scale * products, dim=-1)
    among = views @ views.transpose(1, 2)  # (b, Q, Q)
    squared = ((weights.flatten(1, 2) @ among).unflatten(1, weights.shape[1:3]) * weights).sum(-1)
    return (weights * products).sum(-1) / squared.clamp_min(1e-12).sqrt()


def _matches(views: Tensor, sentences: Tensor, counts: Tensor, scales: Scales) -> Tensor:
    """m (b, n); -inf for a report without a sentence."""
    cosines = sentence_cosines(views, sentences, scales.beat)
    there = torch.arange(sentences.shape[1], device=views.device) < counts[:, None]
    nothing = counts == 0
    there = there | nothing[:, None]  # a logarithm of nothing has no gradient
    joined = torch.logsumexp((scales.sentence * cosines).masked_fill(~there, -torch.inf), dim=-1)
    return (scales.match * joined).masked_fill(nothing, -torch.inf)


def beat_loss(
    views: Tensor,
    sentences: Tensor,
    counts: Tensor,
    scales: Scales,
    chunk: int,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """views (b, Q, E) and sentences (b, S, E), unit vectors, counts int64 (b,) of sentences that are there -> 0-dim.

    The same on every rank; gradients are exact for the rows of this rank. chunk: reports compared at a time.
    """
    reports, start = gathered(sentences, group)
    of_report, _ = gathered(counts, group)
    blocks = list(zip(reports.split(chunk), of_report.split(chunk), strict=True))
    if len(blocks) == 1:
        matches = _matches(views, reports, of_report, scales)  # (b, B)
    else:  # what a block holds within is made again for its gradient
        made = [checkpoint(_matches, views, *block, scales, use_reentrant=False) for block in blocks]
        matches = torch.cat(made, dim=1)
    own = counts > 0
    rows = torch.arange(len(views), device=views.device)
    pairs = torch.where(own, matches[rows, start + rows], 0.0)
    valid = of_report > 0
    if not bool(valid.any()):
        return (views.sum() + reports.sum()) * 0.0
    by_ecg = torch.where(own, torch.logsumexp(matches, dim=1), 0.0)
    # A column reaches over all ranks: each adds its part, and the gradient of the whole at its own rows.
    here = torch.logsumexp(matches[:, valid], dim=0)
    everywhere = torch.logsumexp(gathered(here.detach()[None], group)[0], dim=0)
    shares = (here.detach() - everywhere).exp()
    local = (by_ecg - 2 * pairs).sum()
    value = total(local.detach(), group) + everywhere.sum()
    gradient = local + (shares * here).sum()
    return (gradient - gradient.detach() + value) / (2 * valid.sum())
