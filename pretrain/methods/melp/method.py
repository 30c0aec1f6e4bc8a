"""MELP (Wang et al. 2025): three levels at which an ECG and its report meet.

    L = rhythm_weight L_g + caption_weight L_LM + beat_weight L_local                     published: 1.0, 2.0, 0.2
L_g is InfoNCE of both vectors with a learnt temperature; L_LM the cross-entropy of every word of a report given the
words before it and the ECG (`words`), its mean over all words of the global batch; L_local aligns sentences with beats
(`beats`). The report encoder is read from left to right: a token for the whole stands at its end, so that no word sees
what it has to foretell. A report gives its vector by that token, and a sentence by the mean of its words, through one
head.

Ours: the beats are the views of the encoder's learned queries, as published, and their mean is the vector of the ECG;
the sentence level speaks for the global batch; GELU layers of self-attention, cross-attention and one MLP in the
decoder; sentences and reports share the head. What the encoder starts from is `init_from`, as in every method: MELP
starts from a signal-only run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.kernels.contrastive import Execution, infonce
from cardialign.pretrain.config import MethodConfig, RunConfig
from cardialign.pretrain.encoders.base import EcgEncoder
from cardialign.pretrain.methods.base import Exported, ReportBank, StepLoss, Tensors, part
from cardialign.pretrain.methods.melp.beats import Scales, beat_loss
from cardialign.pretrain.methods.melp.config import MelpConfig
from cardialign.pretrain.methods.melp.levels import Levels
from cardialign.pretrain.methods.melp.sentences import (
    NOT_ASKED,
    borders_of,
    next_words,
    sentence_means,
    sentences_of,
)
from cardialign.pretrain.methods.melp.words import word_log_likelihoods
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.logit_scale import LogitScale
from cardialign.pretrain.methods.parts.row_losses import mean_over_batch
from cardialign.pretrain.methods.parts.scoring import COSINE, Scoring
from cardialign.pretrain.methods.parts.two_towers import TwoTowers, age_of, report_keys, retrieval_top1
from cardialign.pretrain.text.encoder import TextEncoder, pool

log = logging.getLogger(__name__)

LEVELS = "levels"


class Melp(TwoTowers):
    """`method.name: melp`.

    Inputs besides both towers': following int64 (b, N), which of the words asked for each token is asked to foretell
    (-100: none), sentence int64 (b, N), which sentence a word is of (-1: none), and report_key int64 (b,).
    Raises UsageError for a report encoder that is not read from left to right, and for an ECG encoder without views.
    Legend: b records, N tokens, S sentences of the longest report, Q views, E embedding_dim.
    """

    Config: ClassVar[type[MethodConfig]] = MelpConfig
    scorings: ClassVar[tuple[str, ...]] = (COSINE, LEVELS)

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        _check(config)
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, MelpConfig)
        self.config = method
        self.logit_scale = LogitScale(method.temperature, method.temperature_min, method.temperature_max, learn=True)
        self.levels = _levels(config, self.ecg)
        self.borders = borders_of(TextEncoder(config.text))
        self.scales = Scales(method.beat_scale, method.sentence_scale, method.match_scale)
        self._bank: ReportBank | None = None
        self._asked = torch.zeros(0, dtype=torch.int64)
        self._column = np.zeros(0, dtype=np.int64)
        self._sentences = 1

    @classmethod
    def scoring(cls, name: str, config: RunConfig, ecg: EcgEncoder) -> Scoring:
        return _levels(config, ecg)

    @classmethod
    def exported(cls, state: Mapping[str, Tensor]) -> Exported:
        return super().exported(state)._replace(scorings={LEVELS: part(state, "levels.")})

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        assert bank is not None
        self._learn_bank(bank)
        inputs = super().inputs(batch, bank, draws)
        ids = inputs["token_ids"].numpy()
        lengths = inputs["token_mask"].sum(dim=1).numpy()
        following = next_words(ids, lengths)
        asked = np.where(following == NOT_ASKED, NOT_ASKED, self._column[following.clip(0)])
        return {
            **inputs,
            "following": torch.from_numpy(asked),
            "sentence": torch.from_numpy(sentences_of(ids, lengths, self.borders)),
            "report_key": report_keys(bank, batch.report),
        }

    def _learn_bank(self, bank: ReportBank) -> None:
        """What must be the same on every rank is taken from the whole bank, never from a batch; once per bank."""
        if self._bank is bank:
            return
        self._bank = bank
        ids, lengths = bank.tokens(np.arange(len(bank.embeddings), dtype=np.int64))
        occurs = np.ones(len(self.borders.ends), dtype=bool)
        if self.config.words == "occurring":
            following = next_words(ids, lengths)
            occurs[:] = False
            occurs[following[following != NOT_ASKED]] = True
        self._asked = torch.from_numpy(np.flatnonzero(occurs))
        self._column = np.cumsum(occurs) - 1
        self._sentences = max(1, int(sentences_of(ids, lengths, self.borders).max(initial=0)) + 1)
        buffer = self.levels.captioner.occurs
        buffer.copy_(torch.from_numpy(occurs).to(buffer.device))
        log.info("melp words=%d of=%d sentences=%d", len(self._asked), len(occurs), self._sentences)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features ecg and text float32 (b, E), views (b, Q, E) and sentences (b, S, E), unit vectors; caption (b, 2),
        sum and number of the words' losses; hits (b, 2), words foretold and their number; log_scale (1,).
        """
        signals = inputs["signal"], inputs["lead_mask"], inputs.get("valid_samples")
        ecg = self.ecg(*signals, return_tokens=True, **age_of(inputs))
        assert ecg.views is not None
        states = self.text.states(inputs["token_ids"], inputs["token_mask"])
        text = self.text.head(pool(states, inputs["token_mask"], self.text.pooling))
        sentences = self.text.head(sentence_means(states, inputs["sentence"], self._sentences))
        captioner = self.levels.captioner
        captions = captioner.captions(ecg.tokens, ecg.token_mask)
        asked = self._asked.to(captions.device, non_blocking=True)
        logits = captioner(captions, states, asked)
        following = inputs["following"]
        number = (following != NOT_ASKED).sum(dim=1).float()
        found = (logits.detach().argmax(dim=-1) == following).sum(dim=1).float()
        return {
            "ecg": ecg.embedding,
            "text": text,
            "views": ecg.views,
            "sentences": sentences,
            "caption": torch.stack([-word_log_likelihoods(logits, following).sum(dim=1), number], dim=1),
            "hits": torch.stack([found, number], dim=1),
            "log_scale": self.logit_scale(),
        }

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss, rhythm_loss, caption_loss, beat_loss, word_accuracy (share of words foretold), temperature,
        retrieval_top1 (of this rank's records).
        """
        config, log_scale = self.config, features["log_scale"]
        execution = Execution(group=group, chunk=config.chunk, scheme=config.scheme)
        rhythm = infonce(features["ecg"], features["text"], log_scale, execution)
        caption = mean_over_batch(features["caption"], group)
        counts = inputs["sentence"].amax(dim=1) + 1
        beat = beat_loss(features["views"], features["sentences"], counts, self.scales, config.chunk, group)
        loss = config.rhythm_weight * rhythm + config.caption_weight * caption + config.beat_weight * beat
        metrics = {
            "loss": loss.detach(),
            "rhythm_loss": rhythm.detach(),
            "caption_loss": caption.detach(),
            "beat_loss": beat.detach(),
            "word_accuracy": mean_over_batch(features["hits"].detach(), group),
            "temperature": torch.exp(-log_scale.detach()).squeeze(),
        }
        if len(features["ecg"]):
            ecg, text = features["ecg"].detach(), features["text"].detach()
            metrics["retrieval_top1"] = retrieval_top1(ecg, text, inputs["report_key"])
        return StepLoss(loss, metrics)


def _levels(config: RunConfig, ecg: EcgEncoder) -> Levels:
    encoder, method = TextEncoder(config.text), config.method
    assert isinstance(method, MelpConfig)
    return Levels(method, ecg.token_width, encoder.dim, int(encoder.model_config["vocab_size"]))


def _check(config: RunConfig) -> None:
    """Raises UsageError for what MELP cannot read."""
    if config.text.pooling != "last":
        raise UsageError(
            f"method melp reads reports from left to right, text.pooling is {config.text.pooling or 'not set'}: every "
            "word would see the one that it has to foretell",
            "set text.pooling to last",
        )
    if getattr(config.encoder, "pooling", None) != "queries":
        raise UsageError(
            f"method melp compares sentences with the views of single queries, encoder {config.encoder.name} makes none"
            " as it is set",
            "set encoder.name to conv_transformer and encoder.pooling to queries",
        )
