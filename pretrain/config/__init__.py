"""The typed, strict configuration of a run. Loads neither torch nor pyarrow nor scipy until a recipe names a method.

Every name is imported when it is first used: who loads an encoder reads two sections and no YAML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cardialign.data_shards.plugins import thing_at

if TYPE_CHECKING:
    from cardialign.pretrain.config.data import DataConfig, MixturePart
    from cardialign.pretrain.config.evaluation import EvaluationConfig
    from cardialign.pretrain.config.fields import (
        Depth,
        DropRate,
        Fraction,
        Milliseconds,
        MlpRatio,
        Positive,
        Strict,
        Temperature,
        Width,
        refuse,
    )
    from cardialign.pretrain.config.inherit import recipe_names
    from cardialign.pretrain.config.load import load_config, parse_config
    from cardialign.pretrain.config.run import RunConfig
    from cardialign.pretrain.config.towers import EncoderConfig, MethodConfig, TextConfig
    from cardialign.pretrain.config.training import CollapseConfig, OptimizerConfig, ScheduleConfig, TrainingConfig

ROOMS = {
    "data": ("DataConfig", "MixturePart"),
    "evaluation": ("EvaluationConfig",),
    "fields": (
        "Depth",
        "DropRate",
        "Fraction",
        "Milliseconds",
        "MlpRatio",
        "Positive",
        "Strict",
        "Temperature",
        "Width",
        "refuse",
    ),
    "inherit": ("recipe_names",),
    "load": ("load_config", "parse_config"),
    "run": ("RunConfig",),
    "towers": ("EncoderConfig", "MethodConfig", "TextConfig"),
    "training": ("CollapseConfig", "OptimizerConfig", "ScheduleConfig", "TrainingConfig"),
}
"""Module of this folder -> the names that are taken from it."""

__all__ = [
    "CollapseConfig",
    "DataConfig",
    "Depth",
    "DropRate",
    "EncoderConfig",
    "EvaluationConfig",
    "Fraction",
    "MethodConfig",
    "Milliseconds",
    "MixturePart",
    "MlpRatio",
    "OptimizerConfig",
    "Positive",
    "RunConfig",
    "ScheduleConfig",
    "Strict",
    "Temperature",
    "TextConfig",
    "TrainingConfig",
    "Width",
    "load_config",
    "parse_config",
    "recipe_names",
    "refuse",
]


def __getattr__(name: str) -> Any:
    for module, names in ROOMS.items():
        if name in names:
            found = globals()[name] = thing_at(f"{__name__}.{module}:{name}")
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
