"""`cardialign study`: a recipe in several variants, over folds and seeds, and one table with paired intervals."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import amount, folds, place, place_to_write, whole_number
from cardialign.cluster.cli.result_file import check_place
from cardialign.data_shards.errors import UsageError, UserError

if TYPE_CHECKING:
    from cardialign.cluster.studies.budget import Budget
    from cardialign.cluster.studies.outcome import Outcome
    from cardialign.cluster.studies.work import Work


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study",
        help="ablations (A1-A5), parts, sizes, methods, baselines, missingness, paediatric (B1-B4), or a YAML file of "
        "your own",
    )
    parser.add_argument("--shards", type=place, help="folder of the shard set; its folds part the patients")
    parser.add_argument(
        "--out",
        type=place_to_write,
        required=True,
        help="folder of the cells; a study found there goes on. The same command in several processes at once shares "
        "the cells: each takes one that nobody has",
    )
    parser.add_argument("--recipe", help="another recipe or YAML file than that of the study")
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
        "--budget-gpu-hours",
        type=amount,
        metavar="H",
        help="the same in GPU hours: a cell that trains on a GPU has it for itself",
    )
    parser.add_argument(
        "--workers",
        type=whole_number(0, 100_000),
        metavar="N",
        help="so many cells at a time as Ray tasks, a core each, and a GPU where there are any (0: as many as fit)",
    )
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        help="on the Ray cluster there (auto, ray://host:10001); shards and --out on storage that every node sees",
    )
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="of every variant alike"
    )
    _add_paediatric(parser)


def _add_paediatric(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("study paediatric", "encoders of adults, fine-tuned on children with their age")
    group.add_argument("--adults", type=place, metavar="SHARDS", help="to pretrain on (default: virtual adults)")
    group.add_argument(
        "--children", type=place, metavar="SHARDS", help="with ages (default: virtual, birth to 90 years)"
    )
    group.add_argument("--labels", metavar="SET", help="label set of the children (default finding)")
    group.add_argument("--tiny", action="store_true", help="seconds instead of an hour, to see that everything runs")


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.study == "paediatric":
        from cardialign.cluster.studies.paediatric.command import run as run_paediatric

        return run_paediatric(args)
    from cardialign.cluster.studies.budget import budget_of
    from cardialign.cluster.studies.check import check, configs_of
    from cardialign.cluster.studies.design import cells_of, load_design
    from cardialign.cluster.studies.outcome import Setting
    from cardialign.cluster.studies.work import TABLE, Work, check_folder
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.prompts import load_prompts

    design, budget = load_design(args.study), budget_of(args)
    if args.shards is None:
        raise UsageError("--shards is missing", "name the folder of the shard set")
    if args.recipe is not None:
        design = replace(design, recipe=args.recipe)
        if all(variant.recipe is not None for variant in design.variants):
            raise UsageError(
                f"--recipe {args.recipe} would change nothing: every variant of study {design.name} has its own",
                "leave --recipe out, or write a study of your own",
            )
    if args.only:
        design = design.only([word.strip() for word in args.only.split(",") if word.strip()])
    shard_set = ShardSet.open(args.shards)
    prompts = load_prompts(args.prompts)
    setting = Setting(
        shard_set.path, args.prompts, prompts.label_set, args.folds, tuple(args.overrides), design.missingness,
        design.measures, design.records,
    )  # fmt: skip
    cells = cells_of(design, args.test_folds, args.seeds)
    configs = configs_of(design, cells, setting)
    check_folder(args.out)
    check_place(args.out / TABLE)
    known = check(design, cells, configs, setting, shard_set)
    return _run(args, Work(design, cells, setting, shard_set, args.out, configs), budget, known)


def _run(args: argparse.Namespace, work: Work, budget: Budget, known: dict[int, int]) -> dict[str, Any]:
    """known: patients of each fold kept out who are in others, too."""
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.studies.budget import named_with
    from cardialign.cluster.studies.work import now_and_then, on_ray_of, one_at_a_time
    from cardialign.pretrain.run.lock import locked_run

    with one_at_a_time(args.out):
        _prepare_bank(work)

    def fill() -> None:
        # no fold and seed has all variants yet, or another process writes it at this moment
        with contextlib.suppress(UserError), locked_run(args.out):
            _tabled(args, work, known)

    filled = now_and_then(fill)
    with Progress("study cells") as progress:
        progress(len(work.there()), len(work.cells))
        for _ in work.make(budget, on_ray_of(args)):
            progress(len(work.there()), len(work.cells))
            filled()
    with named_with(budget, len(work.there()), len(work.cells)):
        if not args.no_floors:
            _make_floors(work)
        with one_at_a_time(args.out):
            return _tabled(args, work, known)


def _prepare_bank(work: Work) -> None:
    """The text bank, once for all cells: a plain start does not make it."""
    from cardialign.cluster.runs.lifecycle import prepare
    from cardialign.cluster.studies.cells import first_config_of

    for cell in {cell.variant.name: cell for cell in reversed(work.cells) if cell.name in work.configs}.values():
        first = first_config_of(cell, work.setting)  # of two trainings the second one has no start yet
        prepare(first if first is not None else work.configs[cell.name])


def _make_floors(work: Work) -> None:
    """Beside the cells that the table compares; where other processes still make cells, beside all."""
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.studies.floors import run_floors
    from cardialign.cluster.studies.table import compared

    all_of_them = len(work.there()) + len(work.held()) + len(work.not_learnt()) == len(work.cells)
    cells = work.cells if all_of_them else [each.cell for each in compared(work.design, work.there())]
    with Progress("study floors") as progress:
        places = [(cell.seed, cell.fold) for cell in cells]
        run_floors(work.design, places, work.setting, work.floors, work.shard_set, progress)


def _tabled(args: argparse.Namespace, work: Work, known: dict[int, int]) -> dict[str, Any]:
    """The table of all that is finished by now, written to the folder of the study.

    Raises UserError when no fold and seed has all variants yet, and no other process is at work on them.
    """
    from cardialign.cluster.studies.floors import floors_there
    from cardialign.cluster.studies.missing import missing_lines
    from cardialign.cluster.studies.table import compared, lines_of, study_table
    from cardialign.cluster.studies.work import CELLS, TABLE
    from cardialign.data_shards.files import commit_file, write_json

    outcomes, elsewhere = work.there(), len(work.held())
    failed = {name: error.problem for name, error in work.not_learnt().items()}
    about = {
        "cells": len(outcomes), "of": len(work.cells), "elsewhere": elsewhere, "not_learnt": failed,
        "test_patients_in_training": known,
    }  # fmt: skip
    of_these = [
        f"- {name} collapsed and is in no figure (without {CELLS}/{name} it is tried anew): {problem}"
        for name, problem in failed.items()
    ]
    try:
        places = [(each.cell.seed, each.cell.fold) for each in compared(work.design, outcomes)]
    except UserError as error:
        if not elsewhere and not failed:
            raise
        return {**about, "rows": [], "_table": [error.problem, *of_these]}
    floors = []
    if not args.no_floors:
        floors = floors_there(work.design, places, work.setting, work.floors, work.shard_set)
    table = study_table(work.design, outcomes, args.bootstrap, floors)
    lines = lines_of(table)
    if work.design.missingness:
        table["missingness"] = _missing(work, outcomes, args.bootstrap)
        lines += ["", *missing_lines(table["missingness"]), ""]
    if not floors and not args.no_floors:
        lines.append("- floors: not all of them are there yet; the last process adds them")
    lines += of_these
    told = ", ".join(f"{count} of fold {fold}" for fold, count in known.items() if count)
    lines += [f"- patients with records in other folds, too: {told}; no figures of new patients"] if told else []
    result = {**table, **about, "shards": work.shard_set.fingerprint, "prompts": work.setting.prompts}
    write_json(args.out / TABLE, result, indent=1)
    commit_file(args.out / "table.md", lambda path: path.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return {**result, "_table": lines}


def _missing(work: Work, outcomes: Sequence[Outcome], resamples: int) -> dict[str, Any]:
    """The surfaces of the cells that the table compares."""
    from cardialign.cluster.studies.missing import missing_table
    from cardialign.cluster.studies.table import compared

    rows: dict[str, dict[int, list[Outcome]]] = {}
    for each in compared(work.design, outcomes):
        rows.setdefault(each.cell.variant.name, {}).setdefault(each.cell.fold, []).append(each)
    names = [variant.name for variant in work.design.variants]
    return missing_table(names, work.design.reference, rows, resamples)


def summary(result: dict[str, Any]) -> list[str]:
    elsewhere = result["elsewhere"]
    missing = result["of"] - result["cells"] - result.get("without_start", len(result["not_learnt"]))
    note = [f"{missing} of {result['of']} cells are still to be made: the same command goes on"] if missing else []
    if elsewhere:
        note = [
            f"{missing} of {result['of']} cells are not finished, {elsewhere} of them in work by other processes: the "
            "last of these writes the whole table"
        ]
    return [*result["_table"], *note]
