"""The settings of SCAR-R."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cardialign.pretrain.config import Depth, Fraction, MethodConfig, Positive, Strict, Temperature, Width, refuse
from cardialign.pretrain.encoders.blocks.temporal import head_problems

Weight = Annotated[float, Field(ge=0, le=1000)]
Removed = Annotated[float, Field(ge=0, le=0.95)]
"""Share of what was recorded: half a second of ten seconds at least is left."""
Cosine = Annotated[float, Field(ge=-10, le=10)]


class MaskerConfig(Strict):
    """The network that decides what to remove, and how it plays.

    sees: `encoded`, the whole record's tokens after the encoder's transformer, which hold what it has understood;
    `patches`, those before.
    turns: `alternate`, one step the encoder and one the masker; `reversal`, both at every step, the masker against the
    gradient.
    aim: what it works against: `margin`, of each record alike, how much nearer it is to its own report than to the
    mean one; `loss`, L_mask, which counts most where reports are confused anyhow. `reversal` knows `loss` alone.
    spread: standard deviation of its logits over a record, held there, so that noise (1.8) can always overrule it.
    begins: the step from which it plays; until then all records are masked at random.
    learning_rate: factor of the optimizer's. reads_report: share of records whose report the masker sees, too.
    relaxation: temperature of the relaxed decision, from the first to the last value within `relaxation_steps` steps.
    budget, smoothness: weights of the two terms that hold it.
    """

    width: Width = 64
    depth: Depth = 2
    heads: Depth = 4
    sees: Literal["encoded", "patches"] = "encoded"
    turns: Literal["alternate", "reversal"] = "alternate"
    aim: Literal["margin", "loss"] = "margin"
    spread: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    begins: Annotated[int, Field(ge=0, le=10**9)] = 0
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 1.0
    reads_report: Fraction = 0.0
    relaxation: tuple[Temperature, Temperature] = (1.0, 0.3)
    relaxation_steps: Positive = 1000
    budget: Weight = 1.0
    smoothness: Weight = 0.05

    @model_validator(mode="after")
    def _heads_fit(self) -> MaskerConfig:
        problems = head_problems(self.width, self.heads)
        if self.turns == "reversal" and self.aim != "loss":
            problems.append("turns reversal has one loss for both players, aim margin is the masker's alone; "
                            "set aim to loss or turns to alternate")  # fmt: skip
        refuse(problems)
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
    removed: tuple[Removed, Removed] = (0.1, 0.6)
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
        if self.masker is not None and self.removed[1] == 0:
            problems.append("removed ends at 0, the masker would have nothing to do; raise it, or set masker to null")
        if self.masker is not None and self.random_share == 1.0:
            problems.append("random_share 1 leaves the masker no record; lower it, or set masker to null")
        refuse(problems)
        return self
