"""`RunConfig`: everything that decides a run."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, model_validator

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.mixture import slots_of
from cardialign.pretrain.choices import ENCODERS, METHODS
from cardialign.pretrain.config.data import DataConfig
from cardialign.pretrain.config.evaluation import EvaluationConfig
from cardialign.pretrain.config.fields import PlaceOrId, Strict, refuse
from cardialign.pretrain.config.named import MAIN, choice
from cardialign.pretrain.config.towers import EncoderConfig, MethodConfig, TextConfig
from cardialign.pretrain.config.training import CollapseConfig, OptimizerConfig, ScheduleConfig, TrainingConfig

Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
"""What torch's generator takes, negative numbers too; orders and draws take any whole number."""


class RunConfig(Strict):
    """Everything that decides a run.

    `resolved()` is stored with the run; the same words are YAML keys, options and Python arguments.

    init_from: start from the weights of a run directory, a checkpoint or an exported encoder (`models:/NAME@ALIAS` on
    the command line) instead of random ones; init_fresh: prefixes of tensors that start random all the same.
    evaluation: what is asked of its checkpoints while it trains; null: nothing.
    """

    name: str = "cardialign"
    seed: Seed = 0
    init_from: PlaceOrId | None = None
    init_fresh: tuple[str, ...] = ()
    data: DataConfig = DataConfig()
    encoder: Annotated[SerializeAsAny[EncoderConfig], choice(ENCODERS)] = Field(MAIN)  # type: ignore[assignment]
    text: TextConfig = TextConfig()
    method: Annotated[SerializeAsAny[MethodConfig], choice(METHODS)] = Field(MAIN)  # type: ignore[assignment]
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig(epochs=10)
    collapse: CollapseConfig = CollapseConfig()
    evaluation: EvaluationConfig | None = None

    @model_validator(mode="after")
    def _report_encoder_learns(self) -> RunConfig:
        if self.method.trains_reports and self.text.trainable == "frozen":
            refuse(
                [
                    f"method {self.method.name} trains the report encoder, and text.trainable is frozen; set it to "
                    "full, or to partial with text.train_layers"
                ]
            )
        return self

    @model_validator(mode="after")
    def _every_set_has_a_slot(self) -> RunConfig:
        if self.data.mixture:
            try:
                slots_of([part.weight for part in self.data.mixture], self.training.global_batch)
            except UsageError as error:
                refuse([f"data.mixture: {error.problem}; {error.remedy}"])
        return self

    @property
    def depends_on_micro_batch(self) -> bool:
        """Whether a published BatchNorm, of the encoder or of the method, decides what records see each other."""
        return self.encoder.depends_on_micro_batch or self.method.depends_on_micro_batch

    def resolved(self) -> dict[str, Any]:
        """Plain JSON-able dict with every default filled in. What nobody asked for and what decides nothing of the run
        is not in it: an evaluation, and lead masking."""
        values = self.model_dump(mode="json")
        if self.evaluation is None:
            del values["evaluation"]
        if self.training.lead_masking is None:
            del values["training"]["lead_masking"]
        return values
