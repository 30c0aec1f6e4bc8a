"""The section `method:` of D-BETA."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cardialign.pretrain.config import Depth, DropRate, MethodConfig, MlpRatio, Width, refuse

Hidden = Annotated[float, Field(ge=1e-6, lt=1)]


class DBetaConfig(MethodConfig):
    """Every default is the published one, unless it says otherwise.

    hidden_tokens   share of the tokens of an ECG that the transformer does not see.
    hidden_words    chance of each word of a report (special tokens apart) to be replaced by the mask token.
    mask_token      the token that stands for a hidden word; null: that of the tokenizer, or `<extra_id_0>` of a T5.
    replaced        chance of a record to get another report: one of the `distant` that say the most different things
                    (N3S, nearest-neighbour negative sampling). Some keep their own: that is what is told apart.
    width, depth, heads, mlp_ratio, dropout: of the co-attention layers of each modality.
    decoder_*       of the network that reconstructs hidden tokens; it reads the states before co-attention layer
                    `decoder_from` (counted from 0; `depth`: those behind the last).
    target          of a hidden token: its samples in mV as the encoder normalises them (`plain`), after z-scores of
                    each lead over the record (`lead`) or of each token over all its samples (`token`, ours).
    """

    trains_reports: ClassVar[bool] = True

    name: str = "d_beta"
    hidden_tokens: Hidden = 0.75
    hidden_words: Annotated[float, Field(ge=0, le=0.95)] = 0.25
    mask_token: str | None = None
    replaced: Annotated[float, Field(ge=0, le=0.95)] = 0.5
    distant: Annotated[int, Field(ge=1, le=4096)] = 64
    width: Width = 768
    depth: Depth = 6
    heads: Depth = 12
    mlp_ratio: MlpRatio = 4.0
    dropout: DropRate = 0.1
    decoder_width: Width = 384
    decoder_depth: Depth = 4
    decoder_heads: Depth = 6
    decoder_from: Annotated[int, Field(ge=0, le=1000)] = 3
    target: Literal["lead", "token", "plain"] = "lead"

    @property
    def distant_reports(self) -> int:
        return self.distant if self.replaced else 0

    @model_validator(mode="after")
    def _fits_together(self) -> DBetaConfig:
        problems = []
        if self.width % self.heads:
            problems.append(f"width {self.width} is not a multiple of heads {self.heads}; choose another of them")
        if self.decoder_width % (2 * self.decoder_heads):
            problems.append(
                f"decoder_width {self.decoder_width} / decoder_heads {self.decoder_heads} is no even whole number; "
                "choose another width or heads"
            )
        if self.decoder_from > self.depth:
            problems.append(
                f"decoder_from {self.decoder_from} is behind the last of {self.depth} co-attention layers; set it to "
                f"{self.depth} or less"
            )
        refuse(problems)
        return self
