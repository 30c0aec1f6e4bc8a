"""The section `method:` of MELP."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cardialign.pretrain.config import Depth, DropRate, MethodConfig, MlpRatio, Positive, Temperature, Width, refuse

Weight = Annotated[float, Field(ge=0, le=1000)]
Scale = Annotated[float, Field(ge=1e-3, le=1000)]


class MelpConfig(MethodConfig):
    """Every default is the published one, unless it says otherwise.

    rhythm_weight, caption_weight, beat_weight: of the three losses.
    temperature: where the learnt one of the rhythm level starts.
    beat_scale, sentence_scale, match_scale: what cosines are multiplied by in the attention of a sentence over beats,
    before sentences are joined, and before reports are compared.
    captions: learned queries of the ECG that the decoder reads; width, depth, heads, mlp_ratio and dropout are its own.
    words: `all` asks for the next word among the whole vocabulary, as published; `occurring` among the tokens that some
    report of the text bank has, which costs a fraction.
    chunk: reports that are compared at a time; scheme: as of `cardialign`.
    """

    harmless: ClassVar[tuple[str, ...]] = ("chunk",)
    trains_reports: ClassVar[bool] = True

    name: str = "melp"
    rhythm_weight: Weight = 1.0
    caption_weight: Weight = 2.0
    beat_weight: Weight = 0.2
    temperature: Temperature = 0.07
    temperature_min: Temperature = 0.01
    temperature_max: Temperature = 1.0
    beat_scale: Scale = 4.0
    sentence_scale: Scale = 5.0
    match_scale: Scale = 10.0
    captions: Annotated[int, Field(ge=1, le=4096)] = 128
    width: Width = 768
    depth: Depth = 6
    heads: Depth = 8
    mlp_ratio: MlpRatio = 4.0
    dropout: DropRate = 0.0
    words: Literal["occurring", "all"] = "all"
    chunk: Positive = 1024
    scheme: Literal["auto", "gather", "ring"] = "auto"

    @model_validator(mode="after")
    def _fits_together(self) -> MelpConfig:
        problems = []
        if self.width % self.heads:
            problems.append(f"heads {self.heads} do not divide width {self.width}; choose others")
        if round(self.width * self.mlp_ratio) < 1:
            problems.append(f"mlp_ratio {self.mlp_ratio:g} of width {self.width} leaves no unit; choose a larger one")
        low, high = self.temperature_min, self.temperature_max
        if not low <= self.temperature <= high:
            problems.append(
                f"temperature {self.temperature:g} is outside temperature_min..temperature_max ({low:g}..{high:g}); "
                "move it inside"
            )
        if self.rhythm_weight + self.caption_weight + self.beat_weight == 0:
            problems.append("rhythm_weight, caption_weight and beat_weight are all 0; nothing would be learnt")
        refuse(problems)
        return self
