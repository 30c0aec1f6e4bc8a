"""Pretraining objectives: one file per method, found by name. Nothing is imported until one is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cardialign.pretrain.config import ObjectiveConfig
    from cardialign.pretrain.methods.base import Objective

OBJECTIVES: dict[str, str] = {
    "diagsim": "cardialign.pretrain.methods.cardialign:DiagSim",
}
"""name in the recipe (`objective.name`) -> "module:Class"."""


def create_objective(config: ObjectiveConfig) -> Objective:
    """The objective that `objective.name` asks for. Raises UsageError listing the known ones."""
    from importlib import import_module

    from cardialign.data_shards.errors import UsageError

    if config.name not in OBJECTIVES:
        raise UsageError(f"unknown objective {config.name!r}", f"set objective.name to one of: {', '.join(OBJECTIVES)}")
    module, _, attribute = OBJECTIVES[config.name].partition(":")
    return getattr(import_module(module), attribute)(config)
