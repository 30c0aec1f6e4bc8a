"""What D-BETA predicts of the things that it hides: the words of a report, and the tokens of an ECG."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.encoders.blocks.temporal import TemporalEncoder
from cardialign.pretrain.methods.d_beta.config import DBetaConfig
from cardialign.pretrain.text.encoder import TextEncoder

T5_STAND_IN = "<extra_id_0>"
"""The first sentinel of a T5 tokenizer, which stood for hidden spans when the T5 was trained."""
UNASKED = -100


def mask_token_of(encoder: TextEncoder, wanted: str | None) -> int:
    """The token id that stands for a hidden word: of the word `wanted`, of the tokenizer's mask token, or of a T5's
    first sentinel. Raises UserError where there is none, or `wanted` is no single token."""
    tokenizer: Any = encoder.tokenizer
    word = wanted or tokenizer.mask_token or T5_STAND_IN
    found = tokenizer.convert_tokens_to_ids(word)
    if found is None or found == tokenizer.unk_token_id or not 0 <= found < vocabulary_of(encoder):
        missing = f"its tokenizer has no token {wanted}" if wanted else "its tokenizer has no mask token"
        raise UserError(
            f"method d_beta hides words of reports: text encoder {encoder.encoder_id} cannot, {missing}",
            "set method.mask_token to a token of its vocabulary that no report holds, or use a text encoder that was "
            "trained with hidden words (BERT) or spans (T5)",
        )
    return int(found)


def vocabulary_of(encoder: TextEncoder) -> int:
    """Tokens that the weights know. Raises UserError for a model that does not say it."""
    known = encoder.model_config.get("vocab_size")
    if not isinstance(known, int) or known < 1:
        raise UserError(f"text encoder {encoder.encoder_id}: config.json has no vocab_size", "use another text encoder")
    return known


class WordHead(nn.Module):
    """States of hidden words (b, K, D) -> logits (b, K, V): a linear map, GELU, LayerNorm, and one over the vocabulary
    (the head of BERT)."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.transform, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, states: Tensor) -> Tensor:
        return self.out(self.norm(F.gelu(self.transform(states))))


class TokenDecoder(nn.Module):
    """Fused states of the shown tokens (b, M, D), at their places among mask tokens -> samples of all (b, N, P)."""

    def __init__(self, config: DBetaConfig, values: int) -> None:
        super().__init__()
        d = config.decoder_width
        self.narrow = nn.Linear(config.width, d)
        self.mask_token = nn.Parameter(torch.randn(1, d) * 0.02)
        self.blocks = TemporalEncoder(d, config.decoder_depth, config.decoder_heads, 4.0, 0.0, 0.0)
        self.out = nn.Linear(d, values)

    def forward(self, shown: Tensor, kept: Tensor, seconds: Tensor) -> Tensor:
        """kept int64 (b, M): the places of the shown tokens; seconds (N,): the times of all."""
        small = self.narrow(shown)
        grid = self.mask_token.to(small.dtype).expand(len(kept), len(seconds), -1).clone()
        grid.scatter_(1, kept[..., None].expand_as(small), small)
        return self.out(self.blocks(grid, seconds, None))
