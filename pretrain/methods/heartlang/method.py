"""HeartLang, stage 2 (Jin et al. 2025): half of a record's heartbeats are hidden, and are told by their names.

No reports. The names k_t are those that the frozen quantiser of stage 1 (`heartlang_quantiser`, from whose run this one
starts) gives the beats of the whole record. The encoder sees a learned token in place of each hidden beat, at its lead
and time, and of its state h_t a linear map tells the name:

    L = sum over hidden beats t of -log softmax(A h_t)_(k_t) / hidden beats of the global batch

A beat is one lead's view of a heartbeat: the others may be shown, so to tell a name is to know how a beat that is seen
here looks from there, or to know the beats before and after it.

Published: all settings of the recipe that say so. Ours: half of the beats that are there are hidden (published: half of
256 places, empty ones included, and these are asked for too); hidden beats leave nothing in their neighbours' tokens;
the encoder's differences are its own (`encoders.beat_transformer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import EncoderConfig, MethodConfig, RunConfig, Width, refuse
from cardialign.pretrain.encoders.base import create_encoder
from cardialign.pretrain.encoders.beat_transformer import BeatTransformer, BeatTransformerConfig
from cardialign.pretrain.methods.base import Method, ReportBank, StepLoss, Tensors
from cardialign.pretrain.methods.heartlang.quantiser import Words
from cardialign.pretrain.methods.heartlang.words import BeatWords, Quantiser, beats_needed
from cardialign.pretrain.methods.parts.codebook import words_in_use
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.gathering import total
from cardialign.pretrain.methods.parts.row_losses import mean_over_batch
from cardialign.pretrain.methods.parts.teacher import teacher_of
from cardialign.pretrain.methods.parts.two_towers import batch_signals

LEADS = len(STANDARD_LEADS)
SAME = ("width", "depth", "heads", "mlp_ratio")
"""Keys of the quantiser's encoder that its weights mean something for."""


class HeartLangConfig(MethodConfig):
    """mask_share: of a record's beats that are hidden; at least one is, and one is shown, where there are two.

    words, code_width, quantiser: the book and the encoder of stage 1, as its run has them in `method` and `encoder`.
    """

    name: str = "heartlang"
    mask_share: Annotated[float, Field(ge=1e-6, lt=1)] = 0.5
    words: Words = 8192
    code_width: Width = 128
    quantiser: BeatTransformerConfig = BeatTransformerConfig(size="base", depth=4, heads=2, mlp_ratio=8 / 3)

    @model_validator(mode="after")
    def _names_heartbeats(self) -> HeartLangConfig:
        kind = BeatTransformerConfig.model_fields["name"].default
        wrong = f"quantiser.name {self.quantiser.name!r}: heartbeats are named by a {kind}; leave it out"
        refuse([wrong] if self.quantiser.name != kind else [])
        return self


class HeartLang(Method):
    """`method.name: heartlang`.

    Raises UsageError for another encoder than beat_transformer.
    Legend: b records, N tokens, D width, V words.
    """

    Config: ClassVar[type[MethodConfig]] = HeartLangConfig
    reports: ClassVar[bool] = False
    starts_from: ClassVar[str] = "heartlang_quantiser"

    ecg: BeatTransformer

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, HeartLangConfig)
        if problem := beats_needed(self.ecg, method.name, config.encoder.name):
            raise UsageError(*problem)
        self.config = method
        D = self.ecg.token_width
        self.mask_token = nn.Parameter(torch.randn(D) * 0.02)
        self.of_state = nn.Linear(D, method.words)
        encoder = create_encoder(method.quantiser, spec, config.data.normalisation)
        assert isinstance(encoder, BeatTransformer)
        words = BeatWords(encoder.token_width, method.words, method.code_width, 0.0)
        encoder.pool = encoder.projection = nn.Identity()  # type: ignore[assignment] # it gives tokens alone
        self.quantiser = teacher_of(Quantiser(encoder, words))

    def train(self, mode: bool = True) -> HeartLang:
        super().train(mode)
        self.quantiser.eval()
        return self

    def taken(self, weights: Mapping[str, Tensor], encoder: EncoderConfig) -> Mapping[str, Tensor]:
        """Encoder and words of stage 1 are the quantiser of stage 2; a run of stage 2 is taken as it is."""
        if any(name.startswith("quantiser.") for name in weights):
            return weights
        found = {f"quantiser.{name}": tensor for name, tensor in weights.items() if name.startswith(("ecg.", "words."))}
        own = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("quantiser.")}
        if not any(name.startswith("quantiser.words.") for name in found):
            raise UserError(
                "init_from: the start has no words for heartbeats",
                f"give the run directory, or a checkpoint, of a run of method {self.starts_from}",
            )
        here, there = self.config.quantiser.model_dump(), encoder.model_dump()
        differ = [
            f"method.quantiser.{key} is {here[key]!r}, the source was trained with {there.get(key)!r}"
            for key in SAME
            if here[key] != there.get(key)
        ]
        differ += [
            f"{name} {tuple(tensor.shape)}: the source has shape {tuple(found[name].shape)}"
            if name in found
            else f"{name} {tuple(tensor.shape)}: not in the source"
            for name, tensor in own.items()
            if name not in found or found[name].shape != tensor.shape
        ]
        if differ:
            shown = "\n".join(f"  - {line}" for line in differ[:8])
            raise UserError(
                f"init_from: its quantiser is another one than method.quantiser, words and code_width say:\n{shown}",
                "set method.quantiser, method.words and method.code_width to the encoder and the method of that run",
            )
        started = found["quantiser.words.book.started"]
        if not started.is_meta and not bool(started):  # on `meta`, before stage 1 is trained, nothing is known of it
            raise UserError("init_from: the start has no words yet, its book was never begun", "train it first")
        rest = {name: tensor for name, tensor in weights.items() if not name.startswith(("ecg.", "words."))}
        return {**rest, **found}

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """The signal as every encoder reads it, and draw float64 (b, N): beats with the smallest are hidden."""
        draw = draws.uniform("hidden beats", LEADS * self.ecg.most)
        return {**batch_signals(batch), "draw": torch.from_numpy(np.ascontiguousarray(draw))}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg (b, embedding_dim) of what was shown; told and right (b, 2), errors and hidden beats, and how
        many were told; without a gradient asked (b, N), the names of hidden beats, -1 elsewhere.
        """
        beats = self.ecg.cut(inputs["signal"], inputs["lead_mask"], inputs.get("valid_samples"))
        names = self.quantiser(beats)
        hidden = hide_beats(beats.mask, inputs["draw"], self.config.mask_share)
        tokens = self.ecg.embed(beats)
        tokens = torch.where(hidden[..., None], self.mask_token.to(tokens.dtype), tokens)
        states = self.ecg.encode(tokens, beats)
        odds = self.of_state(states[hidden])
        odds = odds.to(torch.promote_types(odds.dtype, torch.float32))
        wanted = names[hidden]
        errors = odds.new_zeros(hidden.shape).masked_scatter(hidden, F.cross_entropy(odds, wanted, reduction="none"))
        right = torch.zeros_like(errors).masked_scatter(hidden, (odds.argmax(dim=1) == wanted).to(errors))
        count = hidden.sum(dim=1).to(errors)
        return {
            "ecg": self.ecg.pooled(states, beats.mask & ~hidden)[1],
            "told": torch.stack([errors.sum(dim=1), count], dim=1),
            "right": torch.stack([right.sum(dim=1), count], dim=1),
            "asked": torch.where(hidden, names, -1).float(),
        }

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss; accuracy, how often the right name had the highest odds; words, in use among those asked for:
        near 1, the quantiser calls all beats alike and there is nothing to learn.
        """
        loss = mean_over_batch(features["told"], group)
        asked = features["asked"].detach().long().flatten()
        counts = total(asked[asked >= 0].bincount(minlength=self.config.words).double(), group)
        metrics = {
            "loss": loss,
            "accuracy": mean_over_batch(features["right"], group),
            "words": words_in_use(counts),
        }
        return StepLoss(loss, {name: value.detach() for name, value in metrics.items()})


def hide_beats(mask: Tensor, draw: Tensor, share: float) -> Tensor:
    """bool (b, N): of the beats that are there (mask), `share` of each record, those with the smallest draws (b, N).

    At least one is hidden, and one is not, where there are two; of one none.
    """
    there = mask.sum(dim=1)
    count = torch.where(there < 2, 0, (share * there).long().clamp_min(1))
    order = torch.where(mask, draw, torch.inf).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return mask & (order < count[:, None])
