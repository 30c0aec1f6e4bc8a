"""The typed, strict configuration of a run. Loads neither torch nor pyarrow nor scipy until a recipe names a method."""

from cardialign.pretrain.config.fields import Fraction, Positive, Strict, refuse
from cardialign.pretrain.config.load import load_config, parse_config, recipe_names
from cardialign.pretrain.config.run import RunConfig
from cardialign.pretrain.config.sections import (
    CollapseConfig,
    DataConfig,
    EncoderConfig,
    MethodConfig,
    MixturePart,
    OptimizerConfig,
    ScheduleConfig,
    TextConfig,
    TrainingConfig,
)

__all__ = [
    "CollapseConfig",
    "DataConfig",
    "EncoderConfig",
    "Fraction",
    "MethodConfig",
    "MixturePart",
    "OptimizerConfig",
    "Positive",
    "RunConfig",
    "ScheduleConfig",
    "Strict",
    "TextConfig",
    "TrainingConfig",
    "load_config",
    "parse_config",
    "recipe_names",
    "refuse",
]
