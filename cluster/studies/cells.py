"""One cell of a study: a training run without Ray in a process of its own, then what it is worth on the fold kept out.

A cell that is there is taken as it is when it was made from the same configuration, records and prompts; a run that was
killed goes on from its checkpoint. What remains of a cell are its scores and its figures, not its weights. A cell
without a configuration is of a variant that labels alone train.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.studies import missing
from cardialign.cluster.studies.design import Cell, Design
from cardialign.cluster.studies.measures import MEASURES
from cardialign.cluster.studies.origin import CONFIG, FIRST, FIRST_RECIPE, RECIPE, Origin, plain
from cardialign.cluster.studies.outcome import (
    NotLearnt,
    Outcome,
    Setting,
    finished,
    keep,
    number_from_0,
    refuse_not_learnt,
    write_not_learnt,
)
from cardialign.cluster.studies.scoring import scored, scored_by_labels, scoring_device, words_of
from cardialign.cluster.studies.training import RUN, children_seconds, train
from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.files import read_json, write_json
from cardialign.pretrain.run.lock import locked_run

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.config import RunConfig

SPENT = "spent.json"
"""CPU-seconds of a training that is not finished."""
STUDY_DECIDES = ("data.shards", "data.mixture", "data.folds", "data.split", "seed")
"""Keys of a recipe that no variant and no override changes."""


def config_of(design: Design, cell: Cell, setting: Setting) -> RunConfig:
    """What a cell trains; of two trainings the second one, without its start.

    Raises UsageError for a variant or an override that the recipe does not take, or that changes what the study itself
    decides: records and seed. A variant that trained on the fold kept out would win every table.
    """
    from cardialign.pretrain.config import load_config

    own, recipe, changes = _decided(cell, setting), design.recipe_of(cell.variant), cell.variant.overrides
    given, where = [*own, *setting.overrides], f"study {design.name}, variant {cell.variant.name}"
    first = cell.variant.first
    try:
        config = _showing(
            recipe,
            own,
            [*setting.overrides, *changes],
            None if design.records is None else design.records - (first.records if first else 0),
        )
    except UsageError as error:
        load_config(recipe, given)  # where the recipe or --set is at fault, that is what is said
        raise UsageError(f"{where}: {error.problem}", error.remedy) from None
    _refuse_decided(config, recipe, own, where)
    return config


def first_config_of(cell: Cell, setting: Setting) -> RunConfig | None:
    """What the first of two trainings of a cell trains; None where there is one training. Raises as `config_of`."""
    first, where = cell.variant.first, f"first training of variant {cell.variant.name}"
    if first is None:
        return None
    own = _decided(cell, setting)
    try:
        config = _showing(first.recipe, own, setting.overrides, first.records)
    except UsageError as error:
        raise UsageError(f"{where}: {error.problem}", error.remedy) from None
    _refuse_decided(config, first.recipe, own, where)
    return config


def _decided(cell: Cell, setting: Setting) -> list[str]:
    """What the study says of every training, as overrides."""
    return [
        f"data.shards={json.dumps(str(setting.shards))}",
        f"data.folds={json.dumps(setting.training(cell.fold))}",
        f"seed={cell.seed}",
    ]


def _showing(recipe: str, own: list[str], changes: Sequence[str], records: int | None) -> RunConfig:
    """A recipe with these overrides that sees so many records; None: as many as it says."""
    from cardialign.pretrain.config import load_config

    if records is None:
        return load_config(recipe, [*own, *changes])
    config = load_config(recipe, [*own, "training.epochs=null", "training.steps=1", *changes])
    return load_config(recipe, [*own, *_steps(records, config.training.global_batch), *changes])


def _refuse_decided(config: RunConfig, recipe: str, own: list[str], where: str) -> None:
    from cardialign.pretrain.config import load_config

    decided = load_config(recipe, own)
    for key in STUDY_DECIDES:
        now, meant = (attrgetter(key)(each) for each in (config, decided))
        if now != meant:
            raise UsageError(
                f"{where}: {key} is {now!s:.60}, and the study decides it",
                f"leave {key} out of --set and of the variant; --shards, --folds, --test-folds and --seeds say it",
            )


def _steps(records: int, global_batch: int) -> list[str]:
    """Overrides that make a run see so many records. Raises UsageError where these are no whole number of batches."""
    if records % global_batch:
        raise UsageError(
            f"training.global_batch {global_batch} does not divide the {records} records that the study shows to each",
            "choose a batch that does, or other `records` in the study",
        )
    return ["training.epochs=null", f"training.steps={records // global_batch}"]


def run_cell(cell: Cell, config: RunConfig | None, setting: Setting, folder: Path, shard_set: ShardSet) -> Outcome:
    """Train, export, score, and keep the scores in `folder`, which is held meanwhile.

    Raises as the training does, NotLearnt where that collapses or did so before, KeyboardInterrupt when it was stopped,
    HeldError when another process makes it.
    """
    origin = origin_of_cell(cell, config, setting, shard_set)
    with locked_run(folder, "wait for the process that makes this cell, or stop it") as lock:
        refuse_not_learnt(folder, origin)
        there = finished(cell, folder, origin, setting.measures_of(cell))
        if there is not None:
            return there
        if config is None:
            return keep(scored_by_labels(cell, setting, shard_set, origin.digest), folder)
        return _made(cell, config, setting, folder, shard_set, origin, lock)


def _made(
    cell: Cell, config: RunConfig, setting: Setting, folder: Path, shard_set: ShardSet, origin: Origin, lock: int
) -> Outcome:
    from cardialign.pretrain.benchmarks.counts import count_recipe
    from cardialign.pretrain.evaluation.overlap import find_overlap, refuse_overlap
    from cardialign.pretrain.export.from_run import export_run
    from cardialign.pretrain.export.loaded import load_encoder

    started = time.monotonic()
    spent = _trained(cell, config, setting, folder, origin, lock)
    exported = folder / RUN / "export"
    export_run(folder / RUN, exported, overwrite=True, program=False)
    encoder = load_encoder(exported, scoring_device())
    if config.init_from is not None:  # its start may have seen the fold kept out
        words = words_of(setting, shard_set, cell.fold)
        refuse_overlap(find_overlap(encoder, shard_set, words.rows), encoder, shard_set)
    found, size = scored(cell, encoder, config, setting, shard_set), count_recipe(config, shard_set.spec)
    facts = {
        **found.facts,
        "variant": cell.variant.name,
        "fold": cell.fold,
        "seed": cell.seed,
        "made_from": origin.digest,
        "encoder": encoder.digest,
        "parameters": size.encoder_parameters,
        "trained_parameters": size.trained_parameters,
        "gflop": round(size.forward_flop / 1e9, 4),
        "cpu_seconds": round(spent, 1),
        "seconds": round(time.monotonic() - started, 1),
        "device": str(encoder.device.type),
    }
    kept = keep(replace(found, facts=facts), folder)
    for made in (folder / RUN, folder / FIRST):
        shutil.rmtree(made, ignore_errors=True)
    (folder / SPENT).unlink(missing_ok=True)
    return kept


def _trained(cell: Cell, config: RunConfig, setting: Setting, folder: Path, origin: Origin, lock: int) -> float:
    """Both trainings of a cell that has two. Returns the CPU-seconds that they cost, those of earlier tries, too."""
    before, first = children_seconds(), first_config_of(cell, setting)
    earlier = number_from_0((read_json(folder / SPENT) or {}).get("cpu_seconds")) or 0.0
    try:
        if first is not None:
            (folder / FIRST).mkdir(exist_ok=True)
            write_json(folder / FIRST_RECIPE, plain(first), indent=1)
            train(first, folder / FIRST, lock, None if origin.first is None else origin.first.says)
            config = config.model_copy(update={"init_from": str(folder.absolute() / FIRST / RUN)})
        train(config, folder, lock, origin.says)
    except NotLearnt as error:
        if not (folder / RUN).exists():  # the first training collapsed: the second one has left no recipe
            write_json(folder / RECIPE, plain(config), indent=1)
        write_not_learnt(folder, origin.digest, error)
        raise
    finally:  # a training that is stopped and goes on has cost both parts
        spent = earlier + children_seconds() - before
        with contextlib.suppress(OSError):  # a full disk: what ended the training is what is to be told
            write_json(folder / SPENT, {"cpu_seconds": spent})
    return spent


def origin_of_cell(cell: Cell, config: RunConfig | None, setting: Setting, shard_set: ShardSet) -> Origin:
    """The same for a cell, whatever trains it."""
    if config is not None:
        found, first = origin_of(config, setting, shard_set), first_config_of(cell, setting)
        return found if first is None else Origin({**found.facts, **_first_facts(first, setting, shard_set)})
    told = {"shards": shard_set.fingerprint, "labels": setting.label_set, "folds": setting.folds}
    of_cell = {"test": cell.fold, "seed": cell.seed, "supervised": cell.variant.supervised, "set": cell.variant.changes}
    return Origin({**told, **of_cell, "records": setting.records, "measures": list(setting.measures_of(cell))})


def _first_facts(first: RunConfig, setting: Setting, shard_set: ShardSet) -> dict[str, Any]:
    return {FIRST: origin_of(first, setting, shard_set).facts[CONFIG]}


def origin_of(config: RunConfig, setting: Setting, shard_set: ShardSet) -> Origin:
    """All that a cell follows from; where the shard set lies does not matter."""
    from cardialign.pretrain.evaluation.prompts import load_prompts, prompt_set_names
    from cardialign.pretrain.training.initialise import open_start

    values = plain(config)
    values["data"] = {**values["data"], "shards": shard_set.fingerprint}
    facts: dict[str, Any] = {CONFIG: values, "prompts": setting.prompts, "labels": setting.label_set}
    facts["folds"] = setting.folds
    if setting.missingness:
        facts["missingness"] = missing.VERSION
    if setting.measures != MEASURES:
        facts["measures"] = list(setting.measures)
    if config.init_from is not None:  # which may be trained further, or anew
        facts["start"] = open_start(Path(config.init_from)).origin.get("digest")
    if setting.prompts not in prompt_set_names():  # a file of the user's, which may be edited
        facts["prompts"] = load_prompts(setting.prompts).digest
    return Origin(facts)
