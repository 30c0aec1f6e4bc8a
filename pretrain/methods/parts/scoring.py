"""How well a text fits an ECG, in other ways than the cosine of two unit vectors: levels, or a network of both."""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from cardialign.pretrain.encoders.base import EncoderOutput
from cardialign.pretrain.text.encoder import TextEncoder
from cardialign.pretrain.text.tower import TanhHead, TextHead

COSINE = "cosine"
"""Of the unit vectors of an ECG and of a text: every method has it, and nothing leaves with the encoder for it."""


class ReportReader(Protocol):
    """What an encoder has for texts; a `LoadedEncoder` is one."""

    head: TextHead | TanhHead | None

    @property
    def text_encoder(self) -> TextEncoder: ...

    def embed_text(self, texts: list[str]) -> np.ndarray:
        """float32 (P, e) unit rows."""
        ...


class Scoring(nn.Module):
    """One way, with its own weights, which leave with the export (`Exported.scorings`).

    reads_tokens: whether the output of the ECG encoder must hold its tokens.
    Legend: b records, P texts.
    """

    reads_tokens: ClassVar[bool] = True

    def words(self, texts: list[str], reader: ReportReader) -> dict[str, Tensor]:
        """What is made of the texts once: tensors (P, ...), moved to the device of the encoder before they are read."""
        raise NotImplementedError

    def forward(self, output: EncoderOutput, words: dict[str, Tensor]) -> Tensor:
        """float32 (b, P): a logit or a cosine, the larger the better; never a softmax over texts, for findings
        combine."""
        raise NotImplementedError
