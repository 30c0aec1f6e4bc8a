"""Which tokens of a report make a sentence, and what is asked of them.

A sentence ends behind `.`, `!` or `?`, but not at the point of a number (0.12). A report that was cut to the tokens of
the encoder ends with the sentence that was cut. Legend: n reports, N tokens, V vocabulary, S sentences, d width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cardialign.pretrain.text.encoder import TextEncoder

ENDS = (".", "!", "?")
NOT_ASKED = -100
"""In the place of a target: no word follows."""


class Borders(NamedTuple):
    """Of every token of the vocabulary, bool (V,): whether it ends a sentence, and whether it begins with a digit."""

    ends: np.ndarray
    digits: np.ndarray


def borders_of(encoder: TextEncoder) -> Borders:
    """Of the encoder's tokenizer. Where models are counted without weights, whose tokenizer may not be here, every
    eighth token ends a sentence."""
    size = int(encoder.model_config["vocab_size"])
    if torch.get_default_device().type == "meta":
        return Borders(np.arange(size) % 8 == 0, np.zeros(size, dtype=bool))
    known = min(size, len(encoder.tokenizer))
    words = [str(word).lstrip("▁Ġ#") for word in encoder.tokenizer.convert_ids_to_tokens(list(range(known)))]
    words += [""] * (size - known)
    return Borders(np.array([word in ENDS for word in words]), np.array([word[:1].isdigit() for word in words]))


def sentences_of(token_ids: np.ndarray, lengths: np.ndarray, borders: Borders) -> np.ndarray:
    """Token ids (n, N) as `text.pooling: last` has them, lengths (n,) -> int64 (n, N): the sentence of each word,
    counted from 0; -1 for the two tokens that open and close a text, and for padding."""
    place = np.arange(token_ids.shape[1])
    content = (place > 0) & (place < lengths[:, None] - 1)
    end, digit = borders.ends[token_ids] & content, borders.digits[token_ids] & content
    end &= ~(_shifted(digit, 1) & _shifted(digit, -1))
    last = end & ~_shifted(end, -1)
    return np.where(content, np.cumsum(last, axis=1) - last, -1)


def _shifted(flags: np.ndarray, by: int) -> np.ndarray:
    """What the neighbour `by` places before (or, negative, behind) says; nothing at the edge."""
    out = np.zeros_like(flags)
    if by > 0:
        out[:, by:] = flags[:, :-by]
    else:
        out[:, :by] = flags[:, -by:]
    return out


def next_words(token_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64 (n, N): the word that follows each token, which its state is asked for; `NOT_ASKED` where the text is
    closed next."""
    following = np.full(token_ids.shape, NOT_ASKED, dtype=np.int64)
    following[:, :-1] = token_ids[:, 1:]
    return np.where(np.arange(token_ids.shape[1]) < lengths[:, None] - 2, following, NOT_ASKED)


def sentence_means(states: Tensor, sentence: Tensor, count: int) -> Tensor:
    """States (n, N, d), sentence int64 (n, N) -> float32 (n, count, d), unit means of each sentence's words; 0 for one
    that is not there."""
    own = F.one_hot(sentence.clamp_min(-1) + 1, count + 1)[..., 1:].to(torch.promote_types(states.dtype, torch.float32))
    return F.normalize(own.transpose(1, 2) @ states.to(own.dtype), dim=-1)
