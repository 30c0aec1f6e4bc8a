"""What a heartbeat is called: an encoder of beats, and the book whose words stand for what it makes of each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.pretrain.encoders.beat_transformer import BeatTransformer
from cardialign.pretrain.encoders.blocks.heartbeat_tokens import Heartbeats
from cardialign.pretrain.methods.parts.codebook import Codebook, outside_autocast


class BeatWords(nn.Module):
    """Encoded beats (b, N, D) -> unit vectors (b, N, d) in the space of the book, in float32 also where the rest is in
    bf16, as published; a hidden layer as wide as a token."""

    def __init__(self, tokens: int, words: int, width: int, decay: float, revive: int | None = None) -> None:
        super().__init__()
        self.to_code = nn.Sequential(nn.Linear(tokens, tokens), nn.Tanh(), nn.Linear(tokens, width))
        self.book = Codebook(words, width, decay, revive)

    def forward(self, tokens: Tensor) -> Tensor:
        with outside_autocast(tokens):
            said = self.to_code(tokens.to(torch.promote_types(tokens.dtype, torch.float32)))
        return F.normalize(said, dim=-1)

    def name(self, said: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors (b, N, d) -> numbers of words int64 (b, N), -1 where mask is False."""
        chosen = torch.full(mask.shape, -1, device=mask.device)
        chosen[mask] = self.book.nearest(said[mask])
        return chosen


class Quantiser(nn.Module):
    """The encoder of the first stage and its words, as the second stage holds them; `words` and `ecg` are its names."""

    def __init__(self, ecg: BeatTransformer, words: BeatWords) -> None:
        super().__init__()
        self.ecg, self.words = ecg, words

    @torch.no_grad()
    def forward(self, beats: Heartbeats) -> Tensor:
        """The word of every beat, int64 (b, N), -1 where there is none."""
        said = self.words(self.ecg.encode(self.ecg.embed(beats), beats))
        return self.words.name(said, beats.mask)


def beats_needed(encoder: object, method: str, name: str) -> list[str]:
    """What keeps a method of heartbeats from an encoder: problem and remedy; nothing where it fits."""
    if isinstance(encoder, BeatTransformer):
        return []
    return [
        f"method {method} names heartbeats, encoder {name} has no tokens of them",
        "set encoder.name to beat_transformer",
    ]
