"""HeartLang, stage 1 (Jin et al. 2025): a book of words for heartbeats, of which each can be drawn again.

No reports. z_t is what the encoder makes of beat t, which sees all beats of the record, as a unit vector; e(t) the word
next to it (`parts.codebook`). From the words alone, at the places of their beats, a decoder draws every beat again:

    L = sum over recorded samples s of beats of (decoder(e)_s - x_s)^2 / samples of the global batch
        + commitment * mean over beats and numbers of (z_t - sg[e(t)])^2

The gradient of the decoder's input is given to z as it is. Words follow their vectors after every update, all words
those of the global batch. What leaves is the encoder; stage 2 (`heartlang`) starts from the run itself.

Published: all settings of the recipe that say so. Ours: padding, places without a beat, what lies beyond the middle to
the next beat, and missing leads are in no mean (published: all 256 places of the list, empty ones included); the book
begins with the second step, by k-means over the first batch of all workers (published: of each worker); the encoder's
differences are its own (`encoders.beat_transformer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import Depth, MethodConfig, MlpRatio, RunConfig, Width, refuse
from cardialign.pretrain.encoders.beat_transformer import BeatPlaces, BeatTransformer, BeatTransformerConfig
from cardialign.pretrain.encoders.blocks.heartbeat_tokens import Heartbeats
from cardialign.pretrain.encoders.blocks.temporal import TemporalEncoder, head_problems
from cardialign.pretrain.methods.base import Method, ReportBank, StepLoss, Tensors, Weights
from cardialign.pretrain.methods.heartlang.words import BeatWords, beats_needed
from cardialign.pretrain.methods.parts.codebook import Heard, words_in_use
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.row_losses import mean_over_batch
from cardialign.pretrain.methods.parts.two_towers import batch_signals

Words = Annotated[int, Field(ge=2, le=2**16)]


class HeartLangQuantiserConfig(MethodConfig):
    """words, code_width: of the book; decay: of its moving averages; commitment: weight of the second term.

    revive: a word that stood for no beat in so many updates becomes a beat of the batch; null, as published: never.
    The decoder is a transformer of its own. The defaults are those of the released program.
    """

    name: str = "heartlang_quantiser"
    words: Words = 8192
    code_width: Width = 128
    decay: Annotated[float, Field(ge=0, le=0.99999)] = 0.99
    revive: Annotated[int, Field(ge=1, le=10**6)] | None = None
    commitment: Annotated[float, Field(ge=0, le=1000)] = 1.0
    decoder_width: Width = 768
    decoder_depth: Depth = 2
    decoder_heads: Depth = 2
    decoder_mlp_ratio: MlpRatio = 8 / 3

    @model_validator(mode="after")
    def _fits(self) -> HeartLangQuantiserConfig:
        refuse(head_problems(self.decoder_width, self.decoder_heads, self.decoder_mlp_ratio, "decoder_"))
        return self


class BeatDecoder(nn.Module):
    """Words (b, N, d) at the places of their beats -> the samples of every beat (b, N, W)."""

    def __init__(self, config: HeartLangQuantiserConfig, ecg: BeatTransformer, attention: str) -> None:
        super().__init__()
        width = config.decoder_width
        self.of_code = nn.Linear(config.code_width, width)
        self.places = BeatPlaces(width, ecg.seconds)
        self.temporal = TemporalEncoder(
            width, config.decoder_depth, config.decoder_heads, config.decoder_mlp_ratio, 0.0, 0.0, attention
        )
        self.to_samples = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, ecg.window))

    def forward(self, codes: Tensor, beats: Heartbeats) -> Tensor:
        tokens = self.places(self.of_code(codes), beats)
        drawn: Tensor = self.to_samples(self.temporal(tokens, beats.seconds, beats.mask))
        return drawn


class HeartLangQuantiser(Method):
    """`method.name: heartlang_quantiser`.

    Raises UsageError for another encoder than beat_transformer.
    Legend: b records, N tokens, W samples of a token, d code_width, V words.
    """

    Config: ClassVar[type[MethodConfig]] = HeartLangQuantiserConfig
    reports: ClassVar[bool] = False

    ecg: BeatTransformer

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, HeartLangQuantiserConfig)
        if problem := beats_needed(self.ecg, method.name, config.encoder.name):
            raise UsageError(*problem)
        assert isinstance(config.encoder, BeatTransformerConfig)
        self.config = method
        self.words = BeatWords(self.ecg.token_width, method.words, method.code_width, method.decay, method.revive)
        self.decoder = BeatDecoder(method, self.ecg, config.encoder.attention)
        self.heard: Heard | None = None

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """The signal as every encoder reads it: nothing is drawn."""
        return batch_signals(batch)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg (b, embedding_dim); rebuilt (b, 2), squared errors and recorded samples of beats; committed
        (b, 2), squared distances to the words, and beats; without a gradient said (b, N, d) and chosen (b, N), the
        vectors and their words, -1 where no beat is.
        """
        beats = self.ecg.cut(inputs["signal"], inputs["lead_mask"], inputs.get("valid_samples"))
        encoded = self.ecg.encode(self.ecg.embed(beats), beats)
        said = self.words(encoded)
        chosen = self.words.name(said.detach(), beats.mask)
        word = self.words.book.words[chosen.clamp_min(0)].to(said.dtype)
        drawn = self.decoder(said + (word - said).detach(), beats)
        errors = torch.where(beats.inside, drawn.to(said.dtype) - beats.values, 0.0).square()
        apart = torch.where(beats.mask[..., None], said - word, 0.0).square().mean(dim=2)
        return {
            "ecg": self.ecg.pooled(encoded, beats.mask)[1],
            "rebuilt": torch.stack([errors.sum((1, 2)), beats.inside.sum((1, 2)).to(errors)], dim=1),
            "committed": torch.stack([apart.sum(1), beats.mask.sum(1).to(apart)], dim=1),
            "said": said.detach(),
            "chosen": chosen.float(),
        }

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss; rebuilt in mV squared; committed; words, in use by the beats of the global batch, of V: 1
        where all beats have one name.
        """
        rebuilt = mean_over_batch(features["rebuilt"], group)
        committed = mean_over_batch(features["committed"], group)
        chosen = features["chosen"].detach().long()
        there = chosen >= 0
        self.heard = self.words.book.heard(features["said"].detach()[there], chosen[there], group)
        loss = rebuilt + self.config.commitment * committed
        used = words_in_use(self.heard.counts)
        metrics = {"loss": loss, "rebuilt": rebuilt, "committed": committed, "words": used}
        return StepLoss(loss, {name: value.detach() for name, value in metrics.items()})

    def after_update(self, step: int, weights: Weights) -> None:
        super().after_update(step, weights)
        assert self.heard is not None
        self.words.book.follow(self.heard)
