"""MELP's three levels as a way to score a text beside an ECG."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cardialign.pretrain.encoders.base import EncoderOutput
from cardialign.pretrain.methods.melp.beats import sentence_cosines
from cardialign.pretrain.methods.melp.config import MelpConfig
from cardialign.pretrain.methods.melp.sentences import (
    NOT_ASKED,
    Borders,
    borders_of,
    next_words,
    sentence_means,
    sentences_of,
)
from cardialign.pretrain.methods.melp.words import Captioner, word_log_likelihoods
from cardialign.pretrain.methods.parts.scoring import ReportReader, Scoring

PAIRS = 256
"""Pairs of a record and a text whose words are foretold together."""


class Levels(Scoring):
    """`levels`: what a text is worth beside an ECG is the sum of three figures, each of at most 1:

    rhythm  the cosine of both vectors;
    beats   the mean over the sentences of the text of their cosine with the beats that they look at;
    words   the geometric mean of the probabilities of its words, each foretold from the ones before it and the ECG.

    The sum, and that the three weigh alike, are ours: the publication scores by the rhythm level alone, as `cosine`
    does. Legend: b records, P texts, S sentences, N words, E width of the shared space.
    """

    def __init__(self, config: MelpConfig, tokens: int, states: int, vocabulary: int) -> None:
        super().__init__()
        self.beat_scale = config.beat_scale
        self.captioner = Captioner(config, tokens, states, vocabulary)
        self._borders: Borders | None = None

    def words(self, texts: list[str], reader: ReportReader) -> dict[str, Tensor]:
        """text (P, E), sentences (P, S, E) and how many they are (P,), states (P, N, d) of the words and what follows
        each (P, N)."""
        assert reader.head is not None
        encoder = reader.text_encoder
        self._borders = self._borders or borders_of(encoder)
        ids, lengths = encoder.tokenize(texts)
        states, mask = encoder.token_states(texts)
        ids = ids[:, : mask.shape[1]]
        sentence = torch.from_numpy(sentences_of(ids, lengths, self._borders))
        counts = sentence.amax(dim=1) + 1
        means = sentence_means(states, sentence.to(states.device), max(1, int(counts.max())))
        return {
            "text": torch.from_numpy(np.asarray(reader.embed_text(texts), dtype=np.float32)),
            "sentences": reader.head(means),
            "counts": counts,
            "states": states,
            "following": torch.from_numpy(next_words(ids, lengths)),
        }

    def forward(self, output: EncoderOutput, words: dict[str, Tensor]) -> Tensor:
        assert output.views is not None and output.tokens is not None
        rhythm = output.embedding @ words["text"].T
        counts = words["counts"]
        there = torch.arange(words["sentences"].shape[1], device=counts.device) < counts[:, None]
        cosines = sentence_cosines(output.views, words["sentences"], self.beat_scale)
        beats = (cosines * there).sum(-1) / counts.clamp_min(1)
        return rhythm + beats + self.likelihoods(output, words)

    def likelihoods(self, output: EncoderOutput, words: dict[str, Tensor]) -> Tensor:
        """(b, P): the geometric mean of the probabilities of each text's words; 0 for a text without words.

        A word that no report of the training had is left out.
        """
        assert output.tokens is not None
        captions = self.captioner.captions(output.tokens, output.token_mask)
        asked = self.captioner.occurs.nonzero().squeeze(1)
        column = torch.cumsum(self.captioner.occurs, dim=0) - 1
        following = words["following"]
        known = (following != NOT_ASKED) & self.captioner.occurs[following.clamp_min(0)]
        target = torch.where(known, column[following.clamp_min(0)], NOT_ASKED)
        b, P = len(captions), len(target)
        if not len(asked):
            return captions.new_zeros(b, P)
        scored = []
        for pairs in torch.arange(b * P, device=captions.device).split(PAIRS):
            record, text = pairs // P, pairs % P
            logits = self.captioner(captions[record], words["states"][text], asked)
            scored.append(word_log_likelihoods(logits, target[text]).sum(dim=1))
        number = known.sum(dim=1)
        mean = torch.cat(scored).view(b, P) / number.clamp_min(1)
        return torch.where(number > 0, mean.exp(), 0.0)
