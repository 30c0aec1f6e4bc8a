"""A book of words that follow what they stand for: vector quantisation by cosine, with moving averages.

For unit vectors z of a global batch and words e (unit vectors), k(z) = argmax_k z.e_k; of the n_k vectors of word k:
    e_k <- unit(decay e_k + (1 - decay) unit(mean of these))   for every word with n_k > 0, the others stay
The first batch with a vector starts the book: k-means by cosine, 10 rounds, from vectors of the batch at even distance.
Source: van den Oord et al. 2017, appendix A.1, in the form of BEiT v2 (Peng et al. 2022), which HeartLang (Jin et al.
2025) takes over; there the first vectors are drawn at random, per worker. All of it is of the global batch, whatever
the workers; but where vectors are much alike, as those of fresh weights, k-means makes much of the last digit of
float32.
Ours, where it is asked for: a word that stood for nothing in `revive` updates becomes a vector of the batch. Fresh
encoders run away from the first book faster than moving averages follow.
Legend: V words, d their width, n vectors of this rank.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.pretrain.methods.parts.gathering import gathered, total

ROUNDS = 10
ROWS = 4096
"""Vectors compared with all words at a time: 8,192 words then take 128 MiB."""


class Heard(NamedTuple):
    """What a global batch said: vectors (n, d) of this rank; sums float64 (V, d) and counts float64 (V,) of all ranks,
    by the word that stands for them."""

    vectors: Tensor
    sums: Tensor
    counts: Tensor


def outside_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """What is computed in here from `tensor` keeps its precision; on `meta`, where sizes are counted, there is one."""
    return contextlib.nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


class Codebook(nn.Module):
    """V words of width d as buffers: checkpoints carry them, no optimizer sees them."""

    words: Tensor
    started: Tensor
    idle: Tensor

    def __init__(self, words: int, width: int, decay: float, revive: int | None = None) -> None:
        super().__init__()
        self.decay, self.revive = decay, revive
        self.register_buffer("words", F.normalize(torch.randn(words, width), dim=-1))
        self.register_buffer("started", torch.zeros(1))
        self.register_buffer("idle", torch.zeros(words))

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Unit vectors (n, d) -> the numbers of their words, int64 (n,); in float32 also where the rest is in bf16."""
        with outside_autocast(vectors):
            return _nearest(vectors, self.words)

    @torch.no_grad()
    def heard(self, vectors: Tensor, chosen: Tensor, group: dist.ProcessGroup | None = None) -> Heard:
        """Vectors (n, d) of this rank and their words (n,) -> what all ranks said. A collective."""
        sums, counts = _sums(vectors, chosen, len(self.words))
        return Heard(vectors, total(sums, group), total(counts, group))

    @torch.no_grad()
    def follow(self, heard: Heard, group: dist.ProcessGroup | None = None) -> None:
        """Move the words towards what was said, or start them with it. A collective, where vectors are needed."""
        if not bool(self.started):
            vectors, _ = gathered(heard.vectors, group)
            if len(vectors):
                self.words.copy_(k_means(vectors, len(self.words)))
                self.started.fill_(1.0)
            return
        there = heard.counts[:, None] > 0
        mean = F.normalize(heard.sums / heard.counts.clamp_min(1)[:, None], dim=-1)
        moved = F.normalize(self.decay * self.words.double() + (1 - self.decay) * mean, dim=-1)
        self.words.copy_(torch.where(there, moved, self.words.double()))
        self.idle.copy_(torch.where(there[:, 0], 0.0, self.idle + 1))
        if self.revive is not None:
            self._revive((self.idle >= self.revive).nonzero()[:, 0], heard, group)

    def _revive(self, dead: Tensor, heard: Heard, group: dist.ProcessGroup | None) -> None:
        """Words of these numbers, the same on every rank, become vectors of the batch at even distance."""
        if len(dead) == 0:
            return
        vectors, _ = gathered(heard.vectors, group)
        if len(vectors):
            self.words[dead] = evenly(vectors, len(dead)).to(self.words)
            self.idle[dead] = 0.0


def _nearest(vectors: Tensor, words: Tensor) -> Tensor:
    if len(vectors) == 0:
        return torch.zeros(0, dtype=torch.int64, device=vectors.device)
    return torch.cat([(part.to(words.dtype) @ words.T).argmax(dim=1) for part in vectors.split(ROWS)])


def _sums(vectors: Tensor, chosen: Tensor, words: int) -> tuple[Tensor, Tensor]:
    sums = torch.zeros(words, vectors.shape[1], dtype=torch.float64, device=vectors.device)
    return sums.index_add_(0, chosen, vectors.double()), chosen.bincount(minlength=words).double()


def evenly(vectors: Tensor, count: int) -> Tensor:
    """`count` of the vectors (n, d), n > 0, at even distance; of fewer than that some more than once."""
    n, at = len(vectors), torch.arange(count, device=vectors.device)
    return vectors[at * n // count if n >= count else at % n]


def k_means(vectors: Tensor, words: int, rounds: int = ROUNDS) -> Tensor:
    """Unit vectors (n, d), n > 0, -> words (V, d): vectors at even distance, then means of those nearest to each.

    A word that none is nearest to stays where it is; of fewer vectors than words some words are the same.
    """
    found = evenly(vectors, words)
    for _ in range(rounds):
        sums, counts = _sums(vectors, _nearest(vectors, found), words)
        found = torch.where(counts[:, None] > 0, F.normalize(sums, dim=-1).to(found.dtype), found)
    return found


def words_in_use(counts: Tensor) -> Tensor:
    """e^H of how often each word was said, 0-dim between 1 and V; 0 where none was."""
    shares = counts / counts.sum().clamp_min(1)
    spoken = torch.where(shares > 0, shares * shares.clamp_min(1e-300).log(), 0.0)
    return torch.where(counts.sum() > 0, torch.exp(-spoken.sum()), 0.0)
