"""`RunConfig`: everything that decides a run."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.mixture import slots_of
from cardialign.data_shards.plugins import Table
from cardialign.pretrain.choices import ENCODERS, METHODS
from cardialign.pretrain.config.fields import Strict, refuse
from cardialign.pretrain.config.sections import (
    CollapseConfig,
    DataConfig,
    EncoderConfig,
    MethodConfig,
    OptimizerConfig,
    ScheduleConfig,
    TextConfig,
    TrainingConfig,
)

Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
"""What torch's generator takes, negative numbers too; orders and draws take any whole number."""
MAIN = {"name": "cardialign"}
"""What a recipe gets that names no method, or no encoder."""


def section(table: Table, values: Any) -> Any:
    """Dict of a section -> the typed configuration of what its `name` asks for, which checks the rest."""
    if not isinstance(values, dict):
        return values
    values = {**MAIN, **values}
    try:
        kind = table.find(str(values["name"])).Config
    except UsageError as error:
        raise ValueError(f"{error.problem}; {error.remedy}") from None
    return kind.model_validate(values)


def _named(table: Table, values: Any) -> Any:
    """`section`, for what anybody may have written: a section that is no mapping, a name that is no text."""
    if not isinstance(values, dict | Strict):
        name = values if isinstance(values, str) and values in table else next(iter(table))
        raise ValueError(f"{_told(values)} is not a section; write {table.kind}: {{name: {name}}}")
    name = values.get("name", MAIN["name"]) if isinstance(values, dict) else ""
    if not isinstance(name, str):
        raise ValueError(f"name is {_told(name)}; write a name, one of: {', '.join(table)}")
    return section(table, values)


def _told(value: Any) -> str:
    return "null" if value is None else repr(value)


def _choice(table: Table) -> BeforeValidator:
    return BeforeValidator(partial(_named, table))


class RunConfig(Strict):
    """Everything that decides a run.

    `resolved()` is stored with the run; the same words are YAML keys, options and Python arguments.

    init_from: start from the weights of a run directory, a checkpoint or an exported encoder (`models:/NAME@ALIAS` on
    the command line) instead of random ones; init_fresh: prefixes of tensors that start random all the same.
    """

    name: str = "cardialign"
    seed: Seed = 0
    init_from: str | None = None
    init_fresh: tuple[str, ...] = ()
    data: DataConfig = DataConfig()
    encoder: Annotated[SerializeAsAny[EncoderConfig], _choice(ENCODERS)] = Field(MAIN)  # type: ignore[assignment]
    text: TextConfig = TextConfig()
    method: Annotated[SerializeAsAny[MethodConfig], _choice(METHODS)] = Field(MAIN)  # type: ignore[assignment]
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig(epochs=10)
    collapse: CollapseConfig = CollapseConfig()

    @model_validator(mode="after")
    def _every_set_has_a_slot(self) -> RunConfig:
        if self.data.mixture:
            try:
                slots_of([part.weight for part in self.data.mixture], self.training.global_batch)
            except UsageError as error:
                refuse([f"data.mixture: {error.problem}; {error.remedy}"])
        return self

    def resolved(self) -> dict[str, Any]:
        """Plain JSON-able dict with every default filled in."""
        return self.model_dump(mode="json")
