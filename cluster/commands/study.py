"""`cardialign study`: a recipe in several variants, over folds and seeds, and one table with paired intervals."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import amount, folds, place, place_to_write, whole_number
from cardialign.cluster.cli.result_file import check_place
from cardialign.data_shards.errors import UserError

if TYPE_CHECKING:
    from cardialign.cluster.studies.cells import Outcome, Setting
    from cardialign.cluster.studies.design import Cell, Design
    from cardialign.data_shards.shard_set.shard_set import ShardSet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", help="ablations (A1-A5), parts, or a YAML file of your own")
    parser.add_argument(
        "--shards", type=place, required=True, help="folder of the shard set; its folds part the patients"
    )
    parser.add_argument(
        "--out", type=place_to_write, required=True, help="folder of the cells; a study found there goes on"
    )
    parser.add_argument("--recipe", help="another recipe or YAML file than the study's own")
    parser.add_argument("--prompts", default="ptb-xl-super-v2", help="zero-shot words and labels (ptb-xl-super-v2)")
    parser.add_argument("--folds", type=folds, default=tuple(range(1, 10)), metavar="1-9", help="folds used (1-9)")
    parser.add_argument("--test-folds", type=folds, default=(7, 8, 9), metavar="7-9", help="kept out in turn (7-9)")
    parser.add_argument("--seeds", type=whole_number(1, 100), default=3, metavar="N", help="per fold (default 3)")
    parser.add_argument("--only", default="", metavar="A,B", help="these variants, beside the reference")
    parser.add_argument(
        "--no-floors",
        action="store_true",
        help="leave out untrained weights, random kernels and hand features (they cost seconds: nothing is trained)",
    )
    parser.add_argument("--bootstrap", type=whole_number(2), default=1000, metavar="N", help="resamples (default 1000)")
    parser.add_argument(
        "--budget-hours",
        type=amount,
        metavar="H",
        help="begin no further cell once this call has spent so many core hours",
    )
    parser.add_argument(
        "--workers",
        type=whole_number(0, 100_000),
        metavar="N",
        help="so many cells at a time as Ray tasks, one core each (0: as many as there are cores)",
    )
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        help="on the Ray cluster there (auto, ray://host:10001); shards and --out on storage that every node sees",
    )
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="of every variant alike"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.studies.cells import Setting, cells_of
    from cardialign.cluster.studies.check import check
    from cardialign.cluster.studies.design import Design, load_design
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.prompts import load_prompts
    from cardialign.pretrain.run.lock import locked_run

    design = load_design(args.study)
    if args.recipe is not None:
        design = Design(design.name, args.recipe, design.reference, design.variants)
    if args.only:
        design = design.only([word.strip() for word in args.only.split(",") if word.strip()])
    shard_set = ShardSet.open(args.shards)
    prompts = load_prompts(args.prompts)
    setting = Setting(shard_set.path, args.prompts, prompts.label_set, args.folds, tuple(args.overrides))
    cells = cells_of(design, args.test_folds, args.seeds)
    known = check(design, cells, setting, shard_set)
    check_place(args.out / "table.json")
    remedy = "wait for it, stop it with Ctrl-C (it ends at a checkpoint), or give another --out"
    with locked_run(args.out, remedy):
        return _run(args, design, cells, setting, shard_set, known)


def _run(
    args: argparse.Namespace,
    design: Design,
    cells: list[Cell],
    setting: Setting,
    shard_set: ShardSet,
    known: dict[int, int],
) -> dict[str, Any]:
    """known: patients of each fold kept out who are in others, too."""
    from cardialign.cluster.studies.table import lines_of, study_table
    from cardialign.data_shards.files import commit_file, write_json

    def tabled(outcomes: list[Outcome], floors: list[Outcome]) -> dict[str, Any]:
        table = study_table(design, outcomes, args.bootstrap, floors)
        lines = lines_of(table)
        told = ", ".join(f"{count} of fold {fold}" for fold, count in known.items() if count)
        lines += [f"- patients with records in other folds, too: {told}; no figures of new patients"] if told else []
        about = {"cells": len(outcomes), "of": len(cells), "test_patients_in_training": known}
        result = {**table, **about, "shards": shard_set.fingerprint}
        write_json(args.out / "table.json", result, indent=1)
        commit_file(args.out / "table.md", lambda path: path.write_text("\n".join(lines) + "\n", encoding="utf-8"))
        return {**result, "_table": lines}

    def fill(outcomes: list[Outcome]) -> None:
        with contextlib.suppress(UserError):  # no fold and seed has all variants yet
            tabled(outcomes, [])

    _prepare_bank(design, cells, setting)
    outcomes = _all_cells(args, design, cells, setting, shard_set, fill)
    floors = [] if args.no_floors else _floors(args, design, outcomes, setting, shard_set)
    return tabled(outcomes, floors)


def _prepare_bank(design: Design, cells: list[Cell], setting: Setting) -> None:
    """The text bank, once for all cells: a plain start does not make it."""
    from cardialign.cluster.runs.lifecycle import prepare
    from cardialign.cluster.studies.cells import config_of

    seen = set()
    for cell in cells:
        if cell.variant.name not in seen:
            seen.add(cell.variant.name)
            prepare(config_of(design, cell, setting))


def _all_cells(
    args: argparse.Namespace,
    design: Design,
    cells: list[Cell],
    setting: Setting,
    shard_set: ShardSet,
    fill: Callable[[list[Outcome]], object],
) -> list[Outcome]:
    """Those that are there, and those that the budget of this call allows; fill: called with all of them after each."""
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.studies.cells import config_of, finished, made_of, run_cell
    from cardialign.cluster.studies.ray_cells import StudyJob, on_ray

    def known(cell: Cell) -> Outcome | None:
        return finished(
            cell, args.out / "cells" / cell.name, made_of(config_of(design, cell, setting), setting, shard_set)
        )

    found = {cell.name: known(cell) for cell in cells}
    todo = [cell for cell in cells if found[cell.name] is None]
    spent = 0.0

    def within_budget() -> Iterator[Cell]:
        for cell in todo:
            if args.budget_hours is not None and spent >= args.budget_hours * 3600:
                return
            yield cell

    def ended() -> Iterator[Cell]:
        if args.address is None and args.workers is None:
            for cell in within_budget():
                run_cell(cell, config_of(design, cell, setting), setting, args.out / "cells" / cell.name, shard_set)
                yield cell
            return
        jobs = (
            StudyJob(
                cell, config_of(design, cell, setting).resolved(), setting, args.out.absolute() / "cells" / cell.name
            )
            for cell in within_budget()
        )
        for done in on_ray(jobs, None if args.address == "local" else args.address, args.workers or 0):
            yield todo[done]

    with Progress("study cells") as progress:
        progress(len(cells) - len(todo), len(cells))
        for cell in ended():
            outcome = found[cell.name] = known(cell)
            assert outcome is not None
            spent += outcome.facts["cpu_seconds"]
            there = [each for each in found.values() if each is not None]
            progress(len(there), len(cells))
            fill(there)
    return [each for each in found.values() if each is not None]


def _floors(
    args: argparse.Namespace, design: Design, outcomes: list[Outcome], setting: Setting, shard_set: ShardSet
) -> list[Outcome]:
    """Beside the cells that the table compares, and no others."""
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.studies.floors import run_floors
    from cardialign.cluster.studies.table import compared

    places = [(each.cell.seed, each.cell.fold) for each in compared(design, outcomes)]
    with Progress("study floors") as progress:
        return run_floors(design, places, setting, args.out / "floors", shard_set, progress)


def summary(result: dict[str, Any]) -> list[str]:
    missing = result["of"] - result["cells"]
    note = [f"{missing} of {result['of']} cells are still to be made: the same command goes on"] if missing else []
    return [*result["_table"], *note]
