"""Every mistake of a study before the first hour: recipes, folds, labels and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cardialign.cluster.studies.cells import config_of, first_config_of
from cardialign.cluster.studies.design import Cell, Design, digest_of
from cardialign.cluster.studies.measures import ZERO_SHOT
from cardialign.cluster.studies.outcome import Setting
from cardialign.cluster.studies.scoring import task_of, words_of
from cardialign.data_shards.errors import UsageError, UserError

if TYPE_CHECKING:
    from cardialign.data_shards.record import SignalSpec
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.config import RunConfig
    from cardialign.pretrain.methods.base import Method
    from cardialign.pretrain.training.initialise import Start


def configs_of(design: Design, cells: Sequence[Cell], setting: Setting) -> dict[str, RunConfig]:
    """What each cell trains, by its name, but for those that labels alone train. Raises as `config_of`."""
    for cell in cells:
        first_config_of(cell, setting)
    return {cell.name: config_of(design, cell, setting) for cell in cells if cell.variant.supervised is None}


def check(
    design: Design, cells: Sequence[Cell], configs: Mapping[str, RunConfig], setting: Setting, shard_set: ShardSet
) -> dict[int, int]:
    """configs: as `configs_of` makes them. Returns how many patients of each fold kept out are in the others, too.

    Raises UsageError for a method without words, two variants that train the same or see different numbers of records
    where the study says one, and a start that has seen what it is tested on; DataError for a fold without labelled
    records; UserError where no class of a fold can be learnt or ranked, a start cannot be read, or the second of two
    trainings cannot go on from the first.
    """
    from cardialign.pretrain.methods.base import method_class

    made: dict[str, str] = {}
    _check_supervised(design, shard_set)
    cells = [cell for cell in cells if cell.name in configs]
    for cell in cells:
        config, where = configs[cell.name], f"study {design.name}"
        if ZERO_SHOT in setting.measures and not method_class(config).reports:
            raise UsageError(
                f"{where}, variant {cell.variant.name}: method {config.method.name} reads no reports",
                "choose a method with reports, or write `measures: [probe]` in the study, which scores words otherwise",
            )
        before = first_config_of(cell, setting)
        trained = {**config.resolved(), "name": "", "first": before and {**before.resolved(), "name": ""}}  # not names
        same = made.setdefault(f"{cell.fold} {cell.seed} {digest_of(trained)}", cell.variant.name)
        if same != cell.variant.name:
            raise UsageError(
                f"{where}: variants {same} and {cell.variant.name} train the same with this recipe",
                "leave one of them out with --only, or mend what it sets",
            )
    _check_records(design, cells, configs)
    _check_stages(design, cells, configs, setting, shard_set.spec)
    _check_starts(design, cells, configs, setting, shard_set)
    return {fold: _check_fold(fold, setting, shard_set) for fold in sorted({cell.fold for cell in cells})}


def _check_supervised(design: Design, shard_set: ShardSet) -> None:
    """Encoders that labels alone train, on records of the set. Raises UsageError that names the variant."""
    from cardialign.pretrain.benchmarks.counts import count_encoder
    from cardialign.pretrain.evaluation.probing.tuned import encoder_section

    for variant in design.variants:
        if variant.supervised is None:
            continue
        try:
            changes = [each.removeprefix("encoder.") for each in variant.overrides]
            count_encoder(encoder_section(variant.supervised, changes), shard_set.spec)
        except UsageError as error:
            raise UsageError(f"study {design.name}, variant {variant.name}: {error.problem}", error.remedy) from None


def _check_records(design: Design, cells: Sequence[Cell], configs: Mapping[str, RunConfig]) -> None:
    """Where a study says how many records all variants see, no override may give one of them more."""
    if design.records is None:
        return
    seen: dict[int, str] = {}
    for cell in cells:
        training = configs[cell.name].training
        first = cell.variant.first.records if cell.variant.first else 0
        seen.setdefault(first + (training.steps or 0) * training.global_batch, cell.variant.name)
    if len(seen) > 1:
        told = ", ".join(f"{name} {records}" for records, name in seen.items())
        raise UsageError(
            f"study {design.name} shows as many records to every variant, and here they see different numbers: {told}",
            "set training.global_batch with training.steps, or leave both to the study",
        )


def _check_stages(
    design: Design, cells: Sequence[Cell], configs: Mapping[str, RunConfig], setting: Setting, spec: SignalSpec
) -> None:
    """What every training starts from serves it, also what the first of two will have learnt: raises UserError as the
    training would, before any of them has cost anything. Nothing is allocated."""
    from cardialign.pretrain.training.initialise import open_start

    for cell in {cell.variant.name: cell for cell in cells}.values():  # of folds and seeds one is as good as another
        first, config = first_config_of(cell, setting), configs[cell.name]
        where = f"study {design.name}, variant {cell.variant.name}"
        for each, words in ((first, f"{where}, its first training"), (config, where)):
            if each is None:
                continue
            try:
                if each is config and first is not None and cell.variant.first is not None:
                    start = _learnt_by(first, spec)
                    each = each.model_copy(update={"init_from": f"its first training, {cell.variant.first.recipe}"})
                else:
                    start = None if each.init_from is None else open_start(Path(each.init_from))
                _check_start(each, start, spec)
            except UserError as error:
                raise type(error)(f"{words}: {error.problem}", error.remedy) from None


def _learnt_by(config: RunConfig, spec: SignalSpec) -> Start | None:
    """What another training may start from once this one is done, on no device; None where its report encoder is not on
    this machine."""
    from cardialign.pretrain.training.initialise import start_of

    method = _method_of(config, spec)
    return None if method is None else start_of(method, config, spec)


def _check_start(config: RunConfig, start: Start | None, spec: SignalSpec) -> None:
    from cardialign.pretrain.training.initialise import check_whole_start, require_start

    require_start(config)
    method = None if start is None else _method_of(config, spec)
    if method is not None and start is not None:
        check_whole_start(method, config, start)


def _method_of(config: RunConfig, spec: SignalSpec) -> Method | None:
    from cardialign.pretrain.benchmarks.counts import sized_method, text_on_this_machine

    text, _ = text_on_this_machine(config)
    return None if text is None else sized_method(config.model_copy(update={"text": text}), spec)


def _check_starts(
    design: Design, cells: Sequence[Cell], configs: Mapping[str, RunConfig], setting: Setting, shard_set: ShardSet
) -> None:
    """Weights that a variant starts from must not have seen the fold that it is tested on."""
    from cardialign.pretrain.evaluation.ledger import FOUND
    from cardialign.pretrain.evaluation.overlap import overlap_of
    from cardialign.pretrain.export.from_run import seen_by_start
    from cardialign.pretrain.training.initialise import open_start

    starts = {cell.name: configs[cell.name].init_from for cell in cells}
    seen = {each: seen_by_start(open_start(Path(each)).origin) for each in set(starts.values()) if each is not None}
    for cell in cells:
        start = starts[cell.name]
        if start is None:
            continue
        found = overlap_of(seen[start], shard_set, words_of(setting, shard_set, cell.fold).rows)
        if found.status == FOUND:
            raise UsageError(
                f"study {design.name}, variant {cell.variant.name}: init_from {start} has seen what fold {cell.fold} "
                f"is tested on: {found.note}",
                "start from weights that were trained without these patients, or keep out other --test-folds",
            )


def _check_fold(fold: int, setting: Setting, shard_set: ShardSet) -> int:
    from cardialign.pretrain.evaluation.probing.linear_probe import Learnable
    from cardialign.pretrain.evaluation.scoring import usable_classes

    task = task_of(setting, shard_set, fold)
    try:
        Learnable.of(task.truth, task.parts, task.decided, task.parts.train)
    except ValueError as error:
        raise UserError(
            f"fold {fold} kept out, the probe's penalty chosen on fold {setting.validation(fold)}: {error}",
            "use larger folds, or give other --folds",
        ) from None
    asked = {"probe": (task.truth[task.parts.test], task.decided_in(task.parts.test))}
    if ZERO_SHOT in setting.measures:
        words = words_of(setting, shard_set, fold)
        asked["zero-shot"] = (words.truth, words.decided)
    for measure, (truth, decided) in asked.items():
        if not usable_classes(truth, decided)[0].size:
            raise UserError(
                f"fold {fold} kept out: no class has both positives and negatives there ({measure})",
                "use larger folds, or give other --test-folds",
            )
    others = task.patients[np.concatenate([task.parts.train, task.parts.validation])]
    return len(np.intersect1d(others, task.patients[task.parts.test]))
