"""Every mistake of a study before the first hour: recipes, folds, labels and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cardialign.cluster.studies.cells import Setting, config_of, task_of, words_of
from cardialign.cluster.studies.design import Cell, Design, digest_of
from cardialign.data_shards.errors import UsageError, UserError

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.config import RunConfig


def configs_of(design: Design, cells: Sequence[Cell], setting: Setting) -> dict[str, RunConfig]:
    """What each cell trains, by its name. Raises as `config_of`."""
    return {cell.name: config_of(design, cell, setting) for cell in cells}


def check(
    design: Design, cells: Sequence[Cell], configs: Mapping[str, RunConfig], setting: Setting, shard_set: ShardSet
) -> dict[int, int]:
    """configs: as `configs_of` makes them. Returns how many patients of each fold kept out are in the others, too.

    Raises UsageError for a method without words and two variants that train the same;
    DataError for a fold without labelled records; UserError where no class of a fold can be learnt or ranked.
    """
    from cardialign.pretrain.methods.base import method_class

    made: dict[str, str] = {}
    for cell in cells:
        config, where = configs[cell.name], f"study {design.name}"
        if not method_class(config).reports:
            raise UsageError(
                f"{where}, variant {cell.variant.name}: method {config.method.name} reads no reports",
                "a study scores words, too: choose a method with reports, or probe encoders by `evaluate grid`",
            )
        same = made.setdefault(f"{cell.fold} {cell.seed} {digest_of(config.resolved())}", cell.variant.name)
        if same != cell.variant.name:
            raise UsageError(
                f"{where}: variants {same} and {cell.variant.name} train the same with this recipe",
                "leave one of them out with --only, or mend what it sets",
            )
    return {fold: _check_fold(fold, setting, shard_set) for fold in sorted({cell.fold for cell in cells})}


def _check_fold(fold: int, setting: Setting, shard_set: ShardSet) -> int:
    from cardialign.pretrain.evaluation.probing.linear_probe import Learnable
    from cardialign.pretrain.evaluation.scoring import usable_classes

    task, words = task_of(setting, shard_set, fold), words_of(setting, shard_set, fold)
    try:
        Learnable.of(task.truth, task.parts, task.decided, task.parts.train)
    except ValueError as error:
        raise UserError(
            f"fold {fold} kept out, the probe's penalty chosen on fold {setting.validation(fold)}: {error}",
            "use larger folds, or give other --folds",
        ) from None
    probed = (task.truth[task.parts.test], task.decided_in(task.parts.test))
    for measure, (truth, decided) in (("probe", probed), ("zero-shot", (words.truth, words.decided))):
        if not usable_classes(truth, decided)[0].size:
            raise UserError(
                f"fold {fold} kept out: no class has both positives and negatives there ({measure})",
                "use larger folds, or give other --test-folds",
            )
    others = task.patients[np.concatenate([task.parts.train, task.parts.validation])]
    return len(np.intersect1d(others, task.patients[task.parts.test]))
