"""The settings of SCAR-R."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cardialign.pretrain.config import Depth, Fraction, MethodConfig, Positive, Strict, Temperature, Width, refuse
from cardialign.pretrain.encoders.blocks.temporal import head_problems

Weight = Annotated[float, Field(ge=0, le=1000)]
Cosine = Annotated[float, Field(ge=-10, le=10)]


class MaskerConfig(Strict):
    """The network that decides what to remove, and how it plays.

    turns: `alternate`, one step the encoder and one the masker; `reversal`, both at every step, the masker against the
    gradient.
    begins: the step from which it plays; until then all records are masked at random.
    learning_rate: factor of the optimizer's. reads_report: share of records whose report the masker sees, too.
    relaxation: temperature of the relaxed decision, from the first to the last value within `relaxation_steps` steps.
    budget, smoothness: weights of the two terms that hold it.
    """

    width: Width = 64
    depth: Depth = 2
    heads: Depth = 4
    turns: Literal["alternate", "reversal"] = "alternate"
    begins: Annotated[int, Field(ge=0, le=10**9)] = 0
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 1.0
    reads_report: Fraction = 0.0
    relaxation: tuple[Temperature, Temperature] = (1.0, 0.3)
    relaxation_steps: Positive = 1000
    budget: Weight = 1.0
    smoothness: Weight = 0.05

    @model_validator(mode="after")
    def _heads_fit(self) -> MaskerConfig:
        refuse(head_problems(self.width, self.heads))
        return self


class ScarConfig(MethodConfig):
    """masker: null = every record is masked at random, which is what the masker has to beat.

    align: the loss of ECGs and reports: `infonce`; `diagsim`, whose negatives count less where their reports are alike,
    from `low` on and not at all from `high`; `sigmoid`, each pair a question of its own.
    removed: least and most share of a record's tokens that is removed. random_share: records of a batch that are masked
    at random instead.
    masked, consistency, selection: weights of the terms beside the loss of the whole record.
    target_temperature: of the cosines that the selector is taught by.
    """

    harmless: ClassVar[tuple[str, ...]] = ("chunk",)

    name: str = "scar"
    masker: MaskerConfig | None = MaskerConfig()
    align: Literal["infonce", "diagsim", "sigmoid"] = "infonce"
    low: Cosine = 0.3
    high: Cosine = 0.8
    drop_duplicates: bool = True
    temperature: Temperature = 0.07
    temperature_min: Temperature = 0.01
    temperature_max: Temperature = 1.0
    bias: Annotated[float, Field(ge=-1000, le=1000)] = -10.0
    removed: tuple[Fraction, Fraction] = (0.1, 0.6)
    random_share: Fraction = 0.5
    masked: Weight = 1.0
    consistency: Weight = 0.5
    selection: Weight = 0.1
    target_temperature: Temperature = 0.1
    chunk: Positive = 1024
    scheme: Literal["auto", "gather", "ring"] = "auto"

    @model_validator(mode="after")
    def _ordered(self) -> ScarConfig:
        problems = []
        if self.high - self.low < 1e-3:
            problems.append(f"low {self.low:g} is not below high {self.high:g}; negatives are gone from high on")
        if not self.temperature_min <= self.temperature <= self.temperature_max:
            problems.append(
                f"temperature {self.temperature:g} is outside temperature_min..temperature_max "
                f"({self.temperature_min:g}..{self.temperature_max:g}); move it inside or widen the bounds"
            )
        if self.removed[0] > self.removed[1]:
            problems.append(f"removed begins at {self.removed[0]:g} and ends at {self.removed[1]:g}; swap them")
        if self.masker is not None and self.random_share == 1.0:
            problems.append("random_share 1 leaves the masker no record; lower it, or set masker to null")
        refuse(problems)
        return self
