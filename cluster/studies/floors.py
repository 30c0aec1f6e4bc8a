"""The floors of a study, under the same folds and seeds: what the reference must clear.

`untrained`: the reference's encoder and text head with fresh weights of the cell's seed; probe, and zero-shot by these.
`hand-features` and `random-kernels`: a probe alone; kernels are drawn from the seed, hand features know none.
Nothing is trained: a floor takes seconds, and a study that is finished can be given floors later.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cardialign.cluster.studies.cells import config_of, origin_of
from cardialign.cluster.studies.design import FLOORS, Cell, Design, Variant
from cardialign.cluster.studies.measures import MEASURES, ZERO_SHOT, draws_labels, of_floor
from cardialign.cluster.studies.origin import RECIPE, Origin, plain
from cardialign.cluster.studies.outcome import Outcome, Setting, finished, keep
from cardialign.cluster.studies.scoring import measured, scoring_device
from cardialign.cluster.studies.scoring import task_of as task_of_fold
from cardialign.data_shards.files import write_json
from cardialign.pretrain.run.lock import HeldError, locked_run

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet

_VERSION = 1
"""To be raised when a floor comes to give other numbers."""
_OF_ENCODER, _BY_HAND = "untrained", "hand-features"


def floor_cells(places: Iterable[tuple[int, int]], measures: Sequence[str] = MEASURES) -> list[Cell]:
    """The cells of all floors for these (seed, fold), seed by seed; of hand features one a fold, at the first seed,
    where no measure draws labels by the seed."""
    wanted = sorted(set(places))
    first = {fold: min(seed for seed, other in wanted if other == fold) for _, fold in wanted}
    return [
        Cell(Variant(name, words, {}), fold, seed)
        for seed, fold in wanted
        for name, words in FLOORS.items()
        if name != _BY_HAND or seed == first[fold] or draws_labels(measures)
    ]


def run_floors(
    design: Design,
    places: Iterable[tuple[int, int]],
    setting: Setting,
    folder: Path,
    shard_set: ShardSet,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Every floor of these (seed, fold), those that `folder` holds from there, but for seeds that another process is
    making. Raises as `finished` and `measured`."""
    cells = floor_cells(places, setting.measures)
    wanted = {cell.name: _wanted(design, cell, setting, shard_set) for cell in cells}
    found = {cell.name: finished(cell, folder / cell.name, *wanted[cell.name]) for cell in cells}

    def missing(seed: int) -> list[Cell]:
        own = [cell for cell in cells if cell.seed == seed and found[cell.name] is None]
        found.update({cell.name: finished(cell, folder / cell.name, *wanted[cell.name]) for cell in own})
        return [cell for cell in own if found[cell.name] is None]

    for seed in sorted({cell.seed for cell in cells if found[cell.name] is None}):
        with contextlib.suppress(HeldError), locked_run(folder / f"seed{seed}"):
            todo = missing(seed)
            for outcome in _made(design, todo, setting, shard_set) if todo else ():
                if outcome.cell.variant.name == _OF_ENCODER:
                    config = config_of(design, _reference(design, outcome.cell), setting)
                    (folder / outcome.cell.name).mkdir(parents=True, exist_ok=True)
                    write_json(folder / outcome.cell.name / RECIPE, plain(config), indent=1)
                found[outcome.cell.name] = keep(outcome, folder / outcome.cell.name)
                if progress is not None:
                    progress(sum(each is not None for each in found.values()), len(cells))
    return [each for each in found.values() if each is not None]


def floors_there(
    design: Design, places: Iterable[tuple[int, int]], setting: Setting, folder: Path, shard_set: ShardSet
) -> list[Outcome]:
    """Every floor of these (seed, fold), or none when one of them is not there yet."""
    cells = floor_cells(places, setting.measures)
    found = [finished(cell, folder / cell.name, *_wanted(design, cell, setting, shard_set)) for cell in cells]
    there = [each for each in found if each is not None]
    return there if len(there) == len(cells) else []


def _wanted(design: Design, cell: Cell, setting: Setting, shard_set: ShardSet) -> tuple[Origin, tuple[str, ...]]:
    """All that a floor's cell follows from, and its measures."""
    facts: dict[str, Any] = {"floor": cell.variant.name, "version": _VERSION, "shards": shard_set.fingerprint}
    if cell.variant.name == _OF_ENCODER:
        config = config_of(design, _reference(design, cell), setting)
        measures = of_floor(setting.measures, words=True)
        return Origin({**facts, **origin_of(config, setting, shard_set).facts}), measures
    by = {} if cell.variant.name == _BY_HAND and not draws_labels(setting.measures) else {"seed": cell.seed}
    told = {**facts, **by, "labels": setting.label_set, "folds": setting.folds, "test": cell.fold}
    if setting.measures != MEASURES:
        told["measures"] = list(setting.measures)
    return Origin(told), of_floor(setting.measures, words=False)


def _reference(design: Design, cell: Cell) -> Cell:
    variant = next(each for each in design.variants if each.name == design.reference)
    return Cell(variant, cell.fold, cell.seed)


def _made(design: Design, todo: list[Cell], setting: Setting, shard_set: ShardSet) -> Iterable[Outcome]:
    """The cells of one seed: each record is read once for all floors and folds."""
    from cardialign.pretrain.benchmarks.counts import count_encoder
    from cardialign.pretrain.evaluation.features import EmbedOptions, embed_set
    from cardialign.pretrain.evaluation.probing.systems import of_task, read_systems
    from cardialign.pretrain.evaluation.probing.tasks import Records
    from cardialign.pretrain.export.loaded import untrained_encoder

    started = time.process_time()
    tasks = {fold: task_of_fold(setting, shard_set, fold) for fold in sorted({cell.fold for cell in todo})}
    rows = np.unique(np.concatenate([task.rows for task in tasks.values()]))
    config = config_of(design, _reference(design, todo[0]), setting)
    by_words = ZERO_SHOT in setting.measures
    encoder = untrained_encoder(config, shard_set.spec, todo[0].seed, scoring_device(), with_reports=by_words)
    others = tuple(name for name in FLOORS if name != _OF_ENCODER and any(cell.variant.name == name for cell in todo))
    read = read_systems(encoder, Records(shard_set, rows), others, todo[0].seed)
    embedding = embed_set([encoder], shard_set, rows, EmbedOptions(with_features=True))[0].embedding
    shared = (time.process_time() - started) / len(todo)
    for cell in todo:
        began, task = time.process_time(), tasks[cell.fold]
        at = np.searchsorted(rows, task.rows)
        own = {each.name: each for each in of_task(read, task, at)}
        of_encoder = cell.variant.name == _OF_ENCODER
        features = own["encoder" if of_encoder else cell.variant.name].features
        beside = (encoder, np.asarray(embedding)[at]) if of_encoder else None
        outcome = measured(cell, task, np.asarray(features), beside, setting, shard_set)
        spent = shared + time.process_time() - began
        facts = {
            "variant": cell.variant.name,
            "floor": True,
            "fold": cell.fold,
            "seed": cell.seed,
            "made_from": _wanted(design, cell, setting, shard_set)[0].digest,
            "parameters": sum(each.numel() for each in encoder.ecg.parameters()) if of_encoder else 0,
            "gflop": round(count_encoder(config.encoder, shard_set.spec)[1] / 1e9, 4) if of_encoder else None,
            "cpu_seconds": round(spent, 1),
        }
        yield replace(outcome, facts=facts)
