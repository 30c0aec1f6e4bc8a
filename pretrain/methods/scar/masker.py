"""What is removed of a record: an adversary's choice, or chance, to an exact number of tokens.

Legend: b records, n patches per lead, N = 12 n tokens (lead after lead), D width of the encoder's tokens, E
embedding_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.pretrain.encoders.blocks.temporal import TemporalEncoder
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.scar.config import MaskerConfig

LEADS = len(STANDARD_LEADS)
LEAST = 1e-6
"""Uniform draws keep this far from 0 and 1: the noise stays finite."""
FEWEST = 1e-3
"""A share keeps this far from 0 and 1, for its logarithm."""
WHOLE = 10.0
"""How much a factor that is drawn outweighs the cells under it, where whole leads or times are removed at random."""


class Masker(nn.Module):
    """Tokens -> how gladly each is removed: the sum of a lead's, a time's and a cell's own number.

        s_lt = a_l + b_t + c_lt,   then shifted and scaled to mean 0 and standard deviation `spread` over the record

    Only the order of a record's logits decides what goes. Without a fixed spread they grow until noise changes nothing
    and the soft decisions have no gradient left: what was learnt first, of an encoder that knew little, then stays.
    A small transformer reads the encoder's tokens, which get no gradient from it. a_l is read from the mean of its
    states over the recorded patches of lead l, b_t from the mean over leads, c_lt from the state itself.
    """

    def __init__(self, config: MaskerConfig, token_width: int, embedding_dim: int) -> None:
        super().__init__()
        self.to_tokens = nn.Linear(token_width, config.width)
        self.report = nn.Linear(embedding_dim, config.width, bias=False) if config.reads_report else None
        self.mixer = TemporalEncoder(config.width, config.depth, config.heads, 2.0, 0.0, 0.0)
        self.lead, self.time = (nn.Linear(config.width, 1, bias=False) for _ in range(2))
        self.cell = nn.Linear(config.width, 1, bias=False)
        self.spread = config.spread

    def forward(self, tokens: Tensor, seconds: Tensor, recorded: Tensor, report: Tensor | None = None) -> Tensor:
        """tokens (b, N, D) of the encoder, their seconds (N,), recorded bool (b, N), report (b, E) or zeros -> logits
        float32 (b, N); those of tokens that were not recorded mean nothing.
        """
        states = self.to_tokens(tokens.detach())
        if self.report is not None and report is not None:
            states = states + self.report(report.detach().to(states.dtype))[:, None]
        states = self.mixer(states, seconds, recorded).unflatten(1, (LEADS, -1))  # (b, 12, n, width)
        there = recorded.unflatten(1, (LEADS, -1))[..., None]
        of_lead, of_time = self.lead(_mean(states, there, 2)), self.time(_mean(states, there, 1))
        logits = (exact(of_lead) + exact(of_time) + exact(self.cell(states))).flatten(1)
        return self.spread * _standardised(logits, recorded)


def exact(values: Tensor) -> Tensor:
    """float32 or better."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _mean(states: Tensor, there: Tensor, axis: int) -> Tensor:
    """The mean of what is there along one axis, which stays; 0 where nothing is."""
    total = torch.where(there, exact(states), 0.0).sum(dim=axis, keepdim=True)
    return (total / there.sum(dim=axis, keepdim=True).clamp_min(1)).to(states.dtype)


def _standardised(logits: Tensor, recorded: Tensor) -> Tensor:
    """(b, N) -> mean 0 and standard deviation 1 over what was recorded of each row."""
    count = recorded.sum(dim=1, keepdim=True).clamp_min(1)
    apart = logits - torch.where(recorded, logits, 0.0).sum(dim=1, keepdim=True) / count
    variance = torch.where(recorded, apart, 0.0).square().sum(dim=1, keepdim=True) / count
    return apart * torch.rsqrt(variance + FEWEST**2)


class Removal(NamedTuple):
    """removed bool (b, N), exactly `taken` int64 (b,) of each record; relaxed float32 (b, N), the soft decision."""

    removed: Tensor
    taken: Tensor
    relaxed: Tensor


def remove(scores: Tensor, recorded: Tensor, share: Tensor, temperature: Tensor) -> Removal:
    """The highest of scores float32 (b, N) among the recorded tokens, to the share (b,) of these that is asked.

        count = round(share x recorded), at most all but one
        relaxed = sigmoid((scores + log(share / (1 - share))) / temperature)

    scores: logits with the difference of two Gumbel variables added, which is logistic: with logits of 0 a share of the
    soft decisions just as large is above 1/2. temperature (b,).
    A token always stays, so a lead always does. Equal scores: the earlier token goes first.
    """
    there = recorded.sum(dim=1)
    count = torch.minimum(torch.round(share * there).long(), (there - 1).clamp_min(0))
    order = scores.detach().masked_fill(~recorded, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    asked = torch.logit(share.clamp(FEWEST, 1 - FEWEST))[:, None]
    return Removal((rank < count[:, None]) & recorded, count, torch.sigmoid((scores + asked) / temperature[:, None]))


def logistic_noise(draws: Draws, patches: int) -> Tensor:
    """float32 (b, N): the difference of two Gumbel variables."""
    uniform = draws.uniform("masker", LEADS * patches).clip(LEAST, 1 - LEAST)
    return torch.from_numpy((np.log(uniform) - np.log1p(-uniform)).astype(np.float32))


def random_scores(draws: Draws, patches: int) -> Tensor:
    """float32 (b, N) that remove at random: cells, whole leads, whole times, or all three mixed, a quarter each."""
    kind = draws.integers("random kind", 0, 4)
    lead, time = draws.normal("random lead", LEADS, 1), draws.normal("random time", 1, patches)
    weights = np.array([[0.0, 0.0], [WHOLE, 0.0], [0.0, WHOLE], [1.0, 1.0]])[kind]
    cells = draws.normal("random cell", LEADS, patches)
    scores = weights[:, 0, None, None] * lead + weights[:, 1, None, None] * time + cells
    return torch.from_numpy(scores.reshape(len(kind), -1).astype(np.float32))
