"""The sections of the optimiser, its schedule, the training itself, and what stops a run that learns nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cardialign.pretrain.config.fields import MOST, Fraction, Positive, Strict, refuse

Beta = Annotated[float, Field(ge=0, le=0.999_999)]
"""Of Adam. At 1 its averages never move, and its correction divides by zero."""


class OptimizerConfig(Strict):
    """AdamW. eps: below 1e-20 it vanishes in float32, and weights without gradient become NaN. grad_clip: 0 = off."""

    name: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0, le=10)] = 2e-4
    weight_decay: Annotated[float, Field(ge=0, le=1e4)] = 0.1
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: Annotated[float, Field(ge=1e-20, le=1)] = 1e-8
    grad_clip: Annotated[float, Field(ge=0, le=1e9)] = 1.0

    @model_validator(mode="after")
    def _decay_shrinks(self) -> OptimizerConfig:
        if self.lr * self.weight_decay >= 1:
            refuse(
                [
                    f"lr {self.lr:g} x weight_decay {self.weight_decay:g} is 1 or more: every step would wipe out the "
                    "weights; lower one of them"
                ]
            )
        return self


class ScheduleConfig(Strict):
    """Linear warm-up, then cosine to `min_lr_ratio` x lr.

    Warm-up is on by default: without a ramp both towers can collapse within 25 steps.
    """

    name: Literal["cosine", "constant"] = "cosine"
    warmup_fraction: Fraction = 0.1
    warmup_steps: Annotated[int, Field(ge=0, le=MOST)] | None = None
    min_lr_ratio: Fraction = 0.01


class LeadMaskingConfig(Strict):
    """Random lead masking: of this share of the records, 0 to `most` leads are hidden, each number equally likely.

    One recorded lead always stays. `lead_dropout` hides each lead by itself: of twelve leads hardly ever nine.
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    most: Annotated[int, Field(ge=1, le=11)] = 11


class TrainingConfig(Strict):
    """Global batch and duration decide the result;
    micro-batch, ZeRO stage and world size only decide speed and memory (and which parts `encoder.dropout` and
    `encoder.drop_path` drop, where a recipe has them).

    checkpoint_writing: "background", a checkpoint is copied to host memory (one copy of what the rank writes) and
    written behind the steps that follow; "step", the step waits until it is committed.
    neighbour_copy_every: after every so many steps each worker of `cardialign pretrain` copies what it would write of a
    checkpoint to its own host memory and to that of the next worker. When a worker dies, those that are left commit a
    checkpoint from the newest copies, unless two neighbours are gone; then, as with 0, the run goes on from its last
    checkpoint. The step pays for the copy and for sending it; each worker holds its own part and its neighbour's twice.
    bad_steps: of so many steps whose loss or gradient is not finite, or whose gradient norm is above gradient_limit,
    the update is left out; the next one ends the run.
    """

    global_batch: Annotated[int, Field(ge=2, le=10**7)] = 256
    micro_batch: Positive | None = None
    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    precision: Literal["fp32", "bf16"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 2
    lead_dropout: Fraction = 0.0
    lead_masking: LeadMaskingConfig | None = None
    log_every: Positive = 10
    checkpoint_every: Positive = 200
    keep_checkpoints: Annotated[int, Field(ge=2, le=MOST)] = 3
    checkpoint_writing: Literal["background", "step"] = "background"
    neighbour_copy_every: Annotated[int, Field(ge=0, le=MOST)] = 0
    bad_steps: Annotated[int, Field(ge=0, le=MOST)] = 0
    gradient_limit: Annotated[float, Field(gt=0, le=1e12)] | None = None

    @property
    def masked_share(self) -> float:
        """The share of the records that lead masking takes leads from."""
        return 0.0 if self.lead_masking is None else self.lead_masking.share

    @model_validator(mode="after")
    def _one_duration(self) -> TrainingConfig:
        if (self.steps is None) == (self.epochs is None):
            given = (
                "neither steps nor epochs is set"
                if self.steps is None
                else f"steps {self.steps} and epochs {self.epochs:g} are both set"
            )
            refuse([f"{given}; set exactly one of them (the other to null)"])
        return self


class CollapseConfig(Strict):
    """Stop with a clear message when the loss sits at ln(effective batch) or the embedding rank falls."""

    enabled: bool = True
    patience_steps: Positive = 100
    loss_margin: Annotated[float, Field(gt=0, le=100)] = 0.02
    min_rank: Annotated[float, Field(ge=1, le=2**16)] = 2.0
