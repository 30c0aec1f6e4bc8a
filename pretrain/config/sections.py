"""The sections of a recipe that every method shares.

And the bases of the two that a method and an encoder bring themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cardialign.data_shards.shard_set.splits import FRACTIONS, SALT, SplitRule
from cardialign.pretrain.config.fields import Fraction, Positive, Strict, refuse


class MixturePart(Strict):
    """One shard set of a mixture.

    Its share of every global batch is its weight over the sum of weights; folds and split: null = those of `data`.
    """

    shards: Path
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    folds: tuple[int, ...] | None = None
    split: Literal["train", "val", "test"] | None = None


class DataConfig(Strict):
    """What is read, in which order, and how the signal is normalised on the device.

    shards: one shard set, a folder or a URL; or mixture: several with weights. One of the two, never both.
    `load_config` takes a relative folder, in either place, from where the command runs.
    window: shuffle within windows of this many shards, for object storage; null = over the whole set.
    max_bad_fraction: share of the selected records that may turn out unreadable and be replaced (at least one record);
    0 stops at the first.
    slow_read_seconds: a read that takes longer is logged while it hangs.
    """

    shards: Path | None = None
    mixture: tuple[MixturePart, ...] = ()
    folds: tuple[int, ...] | None = None
    normalisation: Literal["none", "minmax", "zscore", "lead-std"] = "none"
    patient_disjoint: bool = True
    split: Literal["train", "val", "test"] | None = None
    split_fractions: tuple[Fraction, Fraction, Fraction] = FRACTIONS
    split_salt: str = SALT
    window: Positive | None = None
    threads: Positive = 2
    prefetch: Positive = 4
    max_bad_fraction: Fraction = 0.001
    slow_read_seconds: Annotated[float, Field(gt=0)] = 30.0

    @model_validator(mode="after")
    def _fractions_are_a_split(self) -> DataConfig:
        if abs(sum(self.split_fractions) - 1) > 1e-9:
            refuse(
                [
                    f"split_fractions {list(self.split_fractions)} do not sum to 1; "
                    "give train, val and test, e.g. [0.8, 0.1, 0.1]"
                ]
            )
        return self

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        problems = []
        if self.shards is not None and self.mixture:
            problems.append("shards and mixture are both set; keep one of them (the other to null or [])")
        seen = [(str(part.shards), part.folds, part.split) for part in self.mixture]
        for shards, folds, split in sorted({entry for entry in seen if seen.count(entry) > 1}, key=str):
            problems.append(
                f"mixture names {shards} twice with folds {folds} and split {split}; "
                "name it once and add up the weights"
            )
        refuse(problems)
        return self

    @property
    def parts(self) -> tuple[MixturePart, ...]:
        """The shard sets to read, one or several, with the folds and the split that apply to each;
        empty when none is named.
        """
        named = (MixturePart(shards=self.shards),) if self.shards is not None else self.mixture
        inherited = ("folds", "split")
        return tuple(
            part.model_copy(update={name: getattr(self, name) for name in inherited if getattr(part, name) is None})
            for part in named
        )

    def split_rule(self, part: MixturePart) -> SplitRule | None:
        """What `ShardSet.select` takes for one of `parts`; None when no split is set."""
        return None if part.split is None else SplitRule(part.split, self.split_salt, self.split_fractions)


class EncoderConfig(Strict):
    """The section `encoder:`.

    Every encoder has one of its own, which adds its keys; the name is a row of `pretrain.choices`.

    embedding_dim: width of the embedding, the space that is shared with reports where a method reads them.
    """

    name: str
    embedding_dim: Positive = 256

    @property
    def depends_on_micro_batch(self) -> bool:
        """True where a published BatchNorm takes its statistics from micro-batches: another size is another run."""
        return False


class MethodConfig(Strict):
    """The section `method:`.

    Every method has one of its own, which adds its keys; the name is a row of `pretrain.choices`.

    harmless: keys (without `method.`) that may differ between a checkpoint and the run that continues it: they change
    speed, not what a step computes.
    """

    harmless: ClassVar[tuple[str, ...]] = ()

    name: str


class TextConfig(Strict):
    """The report encoder: `minilm` (ships with a package, no network), a Hugging Face id, or a local folder."""

    encoder: str = "minilm"
    trainable: Literal["frozen", "partial", "full"] = "frozen"
    train_layers: Positive = 6
    max_tokens: Annotated[int, Field(ge=8, le=512)] = 128
    style: Literal["sentences", "merl"] = "sentences"


class OptimizerConfig(Strict):
    name: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-4
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-8
    grad_clip: Annotated[float, Field(ge=0)] = 1.0


class ScheduleConfig(Strict):
    """Linear warm-up, then cosine to `min_lr_ratio` x lr.

    Warm-up is on by default: without a ramp both towers can collapse within 25 steps.
    """

    name: Literal["cosine", "constant"] = "cosine"
    warmup_fraction: Fraction = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    min_lr_ratio: Fraction = 0.01


class TrainingConfig(Strict):
    """Global batch and duration decide the result;
    micro-batch, ZeRO stage and world size only decide speed and memory.
    """

    global_batch: Annotated[int, Field(ge=2)] = 256
    micro_batch: Positive | None = None
    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    precision: Literal["fp32", "bf16"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 2
    lead_dropout: Fraction = 0.0
    log_every: Positive = 10
    checkpoint_every: Positive = 200
    keep_checkpoints: Annotated[int, Field(ge=2)] = 3

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
    loss_margin: Annotated[float, Field(gt=0)] = 0.02
    min_rank: Annotated[float, Field(ge=1)] = 2.0
