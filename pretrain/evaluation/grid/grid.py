"""A linear probe of every task of a protocol at every share, beside its floors, from one call; it can be resumed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.pretrain.evaluation.features import Progress
from cardialign.pretrain.evaluation.grid.plan import GridPlan, OpenTask, open_tasks
from cardialign.pretrain.evaluation.grid.result import GridResult
from cardialign.pretrain.evaluation.grid.store import GridFolder
from cardialign.pretrain.evaluation.openings import ScoredPart, open_test
from cardialign.pretrain.evaluation.overlap import note_ledger
from cardialign.pretrain.evaluation.probing.cells import (
    CellExecutor,
    CellJob,
    InThisProcess,
    features_facts,
    keep_features,
    keep_task,
    place_of,
    shares_of,
)
from cardialign.pretrain.evaluation.probing.fine_tune import PRESETS
from cardialign.pretrain.evaluation.probing.report import ProbeOptions, ProbeResult
from cardialign.pretrain.evaluation.probing.systems import check_systems
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask, Records
from cardialign.pretrain.evaluation.windows import Crop
from cardialign.pretrain.export.usable import UsableEncoder
from cardialign.pretrain.run.lock import locked_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GridWork:
    """Who runs the cells, and who is told: features(records done, of), cells(cells done, of)."""

    executor: CellExecutor
    features: Progress | None = None
    cells: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class _Group:
    """Tasks that read the same seconds and pieces of one set share its features, and what decides these: `facts`."""

    tasks: tuple[OpenTask, ...]
    records: Records
    facts: dict[str, Any]
    folder: Path

    def task_folder(self, of: OpenTask) -> Path:
        return self.folder / of.task.name

    @property
    def systems_folder(self) -> Path:
        return self.folder / "systems"


@dataclass(frozen=True)
class _Cell:
    of: OpenTask
    task: ProbeTask
    group: _Group
    options: ProbeOptions
    facts: dict[str, Any]

    @property
    def key(self) -> tuple[str, float]:
        return self.of.task.name, self.options.shares[0]


def run_grid(
    encoder: UsableEncoder, plan: GridPlan, out: Path, work: GridWork | None = None, *, allow_trained: bool = False
) -> GridResult:
    """All cells, those that `out` holds already from there.

    Raises UsageError when `out` holds another grid, or another process works in it; UserError when no task can be
    probed, records would be scored that the encoder was trained on (unless `allow_trained`), or that do not fit its
    signal contract, or it lacks what is to be read.
    """
    work = work or GridWork(InThisProcess())
    opened = open_tasks(plan)
    for each in opened:
        if each.found is not None:
            figures = {"encoder": encoder, **dict.fromkeys(plan.probe.named(encoder))}
            note_ledger(each.found, plan.sets[each.set_name], figures, allow_trained=allow_trained)
            each.found.about.update(plan.probe.lacking(encoder))
    groups = _groups(encoder, plan, opened, out)
    for group in groups:
        check_systems(encoder, group.records, plan.probe.beside(encoder), plan.probe.attention)
    folder = GridFolder(out)
    folder.begin(plan.facts(encoder))
    with locked_run(out, "wait for it, stop it, or name another folder for --out"):
        done = _done(encoder, plan, groups, folder, work)
    facts = {**plan.facts(encoder), "shares": list(plan.probe.options.shares)}
    return GridResult.of(facts, opened, done, folder.scored)


def _done(
    encoder: UsableEncoder, plan: GridPlan, groups: Sequence[_Group], folder: GridFolder, work: GridWork
) -> dict[tuple[str, float], dict[str, Any]]:
    """Every cell by task and share: from the folder, or made and kept there."""
    cells = [cell for group in groups for cell in _cells(group, plan)]
    done = {each.key: kept for each in cells if (kept := folder.cell(*each.key, each.facts)) is not None}
    todo = [each for each in cells if each.key not in done]
    log.info("grid out=%s cells=%d kept=%d", folder.path, len(cells), len(done))
    jobs = _prepared(encoder, plan, todo, folder, work)
    _tell(work, len(done), len(cells))
    for place, outcome in work.executor.run(jobs):
        cell = todo[place]
        found = outcome if isinstance(outcome, ProbeResult) else outcome.problem
        done[cell.key] = folder.keep(*cell.key, cell.facts, found)
        _tell(work, len(done), len(cells))
    return done


def _tell(work: GridWork, done: int, of: int) -> None:
    if work.cells is not None:
        work.cells(done, of)


def _groups(encoder: UsableEncoder, plan: GridPlan, opened: Sequence[OpenTask], out: Path) -> list[_Group]:
    together: dict[tuple[str, float | None, Crop | None], list[OpenTask]] = {}
    for each in opened:
        if each.found is not None:
            together.setdefault((each.set_name, each.found.first_seconds, each.found.crop), []).append(each)
    groups = []
    for (name, seconds, crop), tasks in together.items():
        rows = np.unique(np.concatenate([each.found.rows for each in tasks if each.found is not None]))
        records = Records(plan.sets[name], rows, seconds, crop)
        facts = features_facts(encoder, records, plan.probe)
        words = [name, *([] if seconds is None else [f"{seconds:g}s"])]
        words += [] if crop is None else [f"pieces-{crop.seconds:g}s-{crop.average}"]
        groups.append(_Group(tuple(tasks), records, facts, out.absolute() / "work" / "-".join(words)))
    return groups


def _cells(group: _Group, plan: GridPlan) -> list[_Cell]:
    cells = []
    for each in group.tasks:
        assert each.found is not None
        of = {"task": each.digest(group.records.shard_set), "ledger": each.found.about["ledger"]}
        for options in shares_of(plan.probe.options):
            how = {"share": options.shares[0], "style": options.style, "seeds": options.seeds}
            facts = {**of, "features": group.facts, **how, "bootstrap": options.bootstrap}
            if options.supervised:
                facts["supervised"] = {name: PRESETS[name][1].model_dump(mode="json") for name in options.supervised}
            cells.append(_Cell(each, each.found, group, options, facts))
    return cells


def _prepared(
    encoder: UsableEncoder, plan: GridPlan, todo: Sequence[_Cell], folder: GridFolder, work: GridWork
) -> list[CellJob]:
    """Features and labels of the cells in files; the test records of their tasks are written down as opened."""
    for group in {id(cell.group): cell.group for cell in todo}.values():
        keep_features(encoder, group.records, plan.probe, group.systems_folder, work.features)
    for cell in {cell.of.task.name: cell for cell in todo}.values():
        name = cell.of.task.name
        opening = folder.openings.get(name)
        if opening is None:
            shard_set = cell.group.records.shard_set
            part = ScoredPart(cell.task.name, shard_set, cell.task.rows[cell.task.parts.test])
            opening = open_test(part, encoder.training_run(), "evaluate grid", encoder.digest)
            folder.note_opening(name, opening)
        cell.task.about["test_opened"] = opening
        places = np.searchsorted(cell.group.records.rows, cell.task.rows)
        keep_task(cell.group.task_folder(cell.of), cell.task, places)
    return [
        CellJob(
            each.group.systems_folder,
            each.group.task_folder(each.of),
            each.options,
            place_of(each.group.records.shard_set),
        )
        for each in todo
    ]
