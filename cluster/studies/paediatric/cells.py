"""The cells of the paediatric study: an encoder pretrained on the adults, once per recipe and seed, and what each arm
makes of the children. A cell that is there is taken as it is when it was made from the same records, start and options;
several processes on one folder share the cells.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cardialign.cluster.studies.budget import Budget
from cardialign.cluster.studies.design import Cell, Variant
from cardialign.cluster.studies.origin import Origin
from cardialign.cluster.studies.outcome import (
    NOT_LEARNT,
    NotLearnt,
    Outcome,
    finished,
    keep,
    not_learnt,
    refuse_not_learnt,
    write_not_learnt,
)
from cardialign.cluster.studies.paediatric.design import ARMS, PLAIN, REFERENCE, SAME_AGE, Arm, Sizes, made_of
from cardialign.cluster.studies.paediatric.records import Split, split_by_age
from cardialign.cluster.studies.scoring import scoring_device
from cardialign.cluster.studies.training import train
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_json, write_json
from cardialign.pretrain.run.lock import HeldError, locked_run

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.data_shards.stream.batch import Batch
    from cardialign.pretrain.config import RunConfig
    from cardialign.pretrain.encoders.base import EcgEncoder
    from cardialign.pretrain.evaluation.probing.fine_tune import FineTuned, FineTuneOptions

log = logging.getLogger(__name__)
ENCODERS, CELLS, TABLE = "encoders", "cells", "table.json"
MEASURES = ("held_out", "seen")
"""Test records of ages that were kept out, and of the ages that were learnt from."""
_RUN, _EXPORT, _MADE = "run", "export", "encoder.json"


@dataclass(frozen=True)
class Study:
    """One call: the records, how many seeds, how much of everything, and the folder that holds all."""

    adults: ShardSet
    children: ShardSet
    label_set: str
    seeds: int
    sizes: Sizes
    out: Path

    def split(self) -> Split:
        return split_by_age(self.children, self.label_set)

    def cells(self) -> list[tuple[Arm, int]]:
        """What the study is for comes first, then one arm after the other: what a budget ends early has whole arms."""
        first = [arm for arm in ARMS if arm.name in (PLAIN, REFERENCE)]
        rest = sorted((arm for arm in ARMS if arm not in first), key=lambda arm: not arm.blind)
        parts = [first, *([arm] for arm in rest)]
        return [(arm, seed) for part in parts for seed in range(self.seeds) for arm in part]

    def look(self, arm: Arm, seed: int) -> Outcome | None:
        """A cell that is finished. Raises UserError for one that was made from something else."""
        cell = cell_of(arm, seed)
        if not (self.out / CELLS / cell.name).exists():
            return None
        return finished(cell, self.out / CELLS / cell.name, self._made_of(arm, seed), MEASURES)

    def there(self) -> list[Outcome]:
        return [found for arm, seed in self.cells() if (found := self.look(arm, seed)) is not None]

    def make(self, budget: Budget) -> Iterator[Outcome]:
        """Every cell that nobody else holds, as it ends; none is begun once those made here have spent the budget."""
        for arm, seed in self.cells():
            if budget.spent:
                return
            with contextlib.suppress(HeldError, NotLearnt):
                if self.look(arm, seed) is None:
                    cores, began = time.process_time(), time.monotonic()
                    children = self.pretrain(arm, seed)
                    made = self.tune(arm, seed)
                    spent, took = children + time.process_time() - cores, time.monotonic() - began
                    budget.spend({"cpu_seconds": spent, "seconds": took, "device": made.facts.get("device")})
                    yield made

    def _made_of(self, arm: Arm, seed: int) -> Origin:
        """Of its own records, and of the adults where it was pretrained."""
        facts: dict[str, Any] = {"children": self.children.fingerprint, "labels": self.label_set}
        if arm.recipe is not None:
            sizes = self.sizes
            facts |= {"adults": self.adults.fingerprint, "epochs": sizes.adult_epochs, "set": sizes.overrides}
            facts |= {"start": seed}
        return made_of(arm, seed, self.sizes, facts)

    def encoder(self, recipe: str, seed: int) -> Path:
        return self.out / ENCODERS / f"{recipe}-seed{seed}"

    def config(self, recipe: str, seed: int) -> tuple[RunConfig, Origin]:
        """What an encoder is trained as, and what it is made from."""
        from cardialign.pretrain.config import load_config

        own = [
            f"data.shards={json.dumps(str(self.adults.path.absolute()))}",
            f"seed={seed}",
            f"training.epochs={self.sizes.adult_epochs}",
        ]
        config = load_config(recipe, [*own, *self.sizes.overrides])
        values = config.resolved()
        return config, Origin({**values, "data": {**values["data"], "shards": self.adults.fingerprint}})

    def not_learnt(self) -> dict[str, NotLearnt]:
        """The pretrainings that collapsed, by the name of their folder: what the alarm said."""
        found = {
            self.encoder(arm.recipe, seed).name: self._collapsed(arm, seed)
            for arm, seed in self.cells()
            if arm.recipe is not None
        }
        return {name: error for name, error in found.items() if error is not None}

    def without_start(self, arm: Arm, seed: int) -> bool:
        """Whether what an arm would start from collapsed: a seed that got several chances would flatter it."""
        return self._collapsed(arm, seed) is not None

    def _collapsed(self, arm: Arm, seed: int) -> NotLearnt | None:
        if arm.recipe is None or not (self.encoder(arm.recipe, seed) / NOT_LEARNT).exists():
            return None
        return not_learnt(self.encoder(arm.recipe, seed), self.config(arm.recipe, seed)[1])

    def is_pretrained(self, arm: Arm, seed: int) -> bool:
        """Whether what an arm starts from is there. Raises UserError for an encoder of another study."""
        if arm.recipe is None:
            return True
        folder, kept = self.encoder(arm.recipe, seed), None
        if folder.is_dir():
            kept = read_json(folder / _MADE)
        if kept is not None and kept != {"made_from": self.config(arm.recipe, seed)[1].digest}:
            raise UserError(
                f"{folder} holds an encoder of another study: recipe, records or epochs differ",
                "give another --out, or move that folder away",
            )
        return (folder / _EXPORT).is_dir()

    def pretrain(self, arm: Arm, seed: int) -> float:
        """Make what an arm starts from; the seconds that it cost, 0 where it is there.

        Raises NotLearnt where it collapses or did so before, else as the training does.
        """
        from cardialign.cluster.runs.lifecycle import prepare
        from cardialign.pretrain.export.from_run import export_run

        if arm.recipe is None:
            return 0.0
        folder = self.encoder(arm.recipe, seed)
        config, made_from = self.config(arm.recipe, seed)
        with locked_run(folder, "wait for the process that trains this encoder, or stop it") as lock:
            if self.is_pretrained(arm, seed):
                return 0.0
            refuse_not_learnt(folder, made_from)
            write_json(folder / _MADE, {"made_from": made_from.digest})
            started = time.monotonic()
            prepare(config)
            try:
                train(config, folder, lock)
            except NotLearnt as error:
                write_not_learnt(folder, made_from.digest, error)
                raise
            export_run(folder / _RUN, folder / _EXPORT, overwrite=True, program=False)
            shutil.rmtree(folder / _RUN, ignore_errors=True)
            return time.monotonic() - started

    def _start(self, arm: Arm, seed: int) -> EcgEncoder:
        from cardialign.pretrain.evaluation.probing.tuned import random_start
        from cardialign.pretrain.export.loaded import load_encoder

        if arm.recipe is None:
            return random_start({**(arm.encoder or {})}, self.children, seed)
        return load_encoder(self.encoder(arm.recipe, seed) / _EXPORT).trainable(self.children.spec)

    def tune(self, arm: Arm, seed: int) -> Outcome:
        """Make a cell: the choice with the best validation figure; what the others came to is kept beside it."""
        from cardialign.pretrain.evaluation.probing.fine_tune import FineTuneOptions, fine_tune

        split = self.split()
        cell, task = cell_of(arm, seed), split.task
        folder = self.out / CELLS / cell.name
        with locked_run(folder, "wait for the process that makes this cell, or stop it"):
            began, wall, start, found = time.process_time(), time.monotonic(), self._start(arm, seed), {}
            for name, changes in arm.choices.items():
                options = FineTuneOptions.model_validate({**dict(self.sizes.tuning), **changes, "seed": seed})
                read = _reader(self, arm, split, options)
                found[name] = fine_tune(start, read, task.truth, task.parts, options, scoring_device(), task.decided)
                log.info("paediatric cell=%s choice=%s validation=%.4f", cell.name, name, max(found[name].history))
            best = max(found, key=lambda name: max(found[name].history))
            facts = {
                "arm": arm.name,
                "seed": seed,
                "made_from": self._made_of(arm, seed).digest,
                "choice": best,
                "tried": {name: _told(each, split) for name, each in found.items()},
                "parameters": sum(each.numel() for each in _gated(start, arm, best).parameters()),
                "cpu_seconds": round(time.process_time() - began, 1),
                "seconds": round(time.monotonic() - wall, 1),
                "device": scoring_device(),
            }
            return keep(_outcome(cell, facts, found[best].scores, split), folder)


def _gated(start: EcgEncoder, arm: Arm, choice: str) -> EcgEncoder:
    return start.gated() if arm.choices[choice].get("age_gate") == "encoder" else start


def cell_of(arm: Arm, seed: int) -> Cell:
    return Cell(Variant(arm.name, arm.words, {}), 0, seed)


def _reader(study: Study, arm: Arm, split: Split, options: FineTuneOptions) -> Callable[[np.ndarray], Iterator[Batch]]:
    from cardialign.data_shards.stream.stream import iterate_rows

    def read(places: np.ndarray) -> Iterator[Batch]:
        for batch in iterate_rows(study.children, split.task.rows[places], options.batch_size):
            if arm.blind:
                batch.age_years = np.full_like(batch.age_years, SAME_AGE)
            yield batch

    return read


def _parts(split: Split) -> dict[str, np.ndarray]:
    """Measure -> which of the test records it is of."""
    return dict(zip(MEASURES, (split.held_out, ~split.held_out), strict=True))


def _told(found: FineTuned, split: Split) -> dict[str, Any]:
    from cardialign.pretrain.evaluation.scoring import class_auroc, decided_at, usable_classes

    task = split.task
    out: dict[str, Any] = {"validation": max(found.history), "best_epoch": found.best_epoch}
    for measure, part in _parts(split).items():
        rows = task.parts.test[part]
        usable, _ = usable_classes(task.truth[rows], task.decided_in(rows))
        areas = class_auroc(
            found.scores[part][:, usable], task.truth[rows][:, usable], decided_at(task.decided, rows, usable)
        )
        out[measure] = float(areas.mean()) if usable.size else None
    return out


def _outcome(cell: Cell, facts: dict[str, Any], scores: np.ndarray, split: Split) -> Outcome:
    task, parts = split.task, _parts(split)
    rows = {measure: task.parts.test[part] for measure, part in parts.items()}
    decided = {measure: each for measure, at in rows.items() if (each := task.decided_in(at)) is not None}
    return Outcome(
        cell,
        facts,
        {measure: scores[part] for measure, part in parts.items()},
        {measure: task.truth[at] for measure, at in rows.items()},
        {measure: task.patients[at].astype(str) for measure, at in rows.items()},
        {measure: [code for code, _ in task.names] for measure in MEASURES},
        decided,
    )
