"""What `cardialign study paediatric` does: the records, the cells that are still to be made, and the table of all."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cardialign.data_shards.errors import UsageError, UserError

if TYPE_CHECKING:
    from cardialign.cluster.studies.paediatric.cells import Study

_OF_OTHERS: dict[str, Any] = {
    "shards": None, "recipe": None, "only": "", "no_floors": False, "overrides": [],
}  # fmt: skip
"""Options of other studies that this one has no use for, and what they are where they are not given."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.cli.result_file import check_place
    from cardialign.cluster.studies.budget import budget_of, named_with
    from cardialign.cluster.studies.paediatric.cells import CELLS, ENCODERS, TABLE, Study
    from cardialign.cluster.studies.paediatric.design import TINY, Sizes
    from cardialign.cluster.studies.paediatric.ray_cells import make_on_ray
    from cardialign.cluster.studies.paediatric.records import VIRTUAL_LABELS, virtual_adults, virtual_children
    from cardialign.cluster.studies.work import on_ray_of, one_at_a_time
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    if idle := [name for name, usual in _OF_OTHERS.items() if getattr(args, name) != usual]:
        words = ", ".join("--set" if name == "overrides" else "--" + name.replace("_", "-") for name in idle)
        way_out = "; --adults and --children name its records" if "shards" in idle else ""
        raise UsageError(f"study paediatric has no use for {words}", f"leave {words} out{way_out}")
    there = {path.name for path in args.out.iterdir()} if args.out.is_dir() else set()
    if there and not there & {CELLS, ENCODERS, TABLE, "data"}:
        raise UsageError(f"--out {args.out} holds something, and no study", "name a new folder, or that of a study")
    budget = budget_of(args)
    check_place(args.out / TABLE)
    sizes = TINY if args.tiny else Sizes()
    with one_at_a_time(args.out):
        adults = ShardSet.open(args.adults or virtual_adults(args.out / "data", sizes))
        children = ShardSet.open(args.children or virtual_children(args.out / "data", sizes))
    _check_spec(adults, children)
    study = Study(adults, children, args.labels or VIRTUAL_LABELS, args.seeds, sizes, args.out)
    study.split()
    with Progress("study cells") as progress:
        done = len(study.there())
        progress(done, len(study.cells()))
        ray = on_ray_of(args)
        for _ in study.make(budget) if ray is None else make_on_ray(study, budget, ray):
            done += 1
            progress(done, len(study.cells()))
    with named_with(budget, len(study.there()), len(study.cells())):
        return tabled(study, args.bootstrap)


def tabled(study: Study, resamples: int) -> dict[str, Any]:
    """The table of all that is finished by now, written to the folder of the study. Raises UserError as `study_table`,
    but where a pretraining collapsed: that is told instead."""
    from cardialign.cluster.studies.paediatric.cells import ENCODERS, TABLE
    from cardialign.cluster.studies.paediatric.table import lines_of, study_table
    from cardialign.data_shards.files import commit_file, write_json

    outcomes, collapsed = study.there(), study.not_learnt()
    failed = [
        f"- {name} collapsed: nothing starts from it (without {ENCODERS}/{name} it is tried anew): {error.problem}"
        for name, error in collapsed.items()
    ]
    about = {
        "records": study.split().task.about,
        "adults": study.adults.fingerprint,
        "children": study.children.fingerprint,
        "cells": len(outcomes),
        "of": len(study.cells()),
        "elsewhere": 0,
        "not_learnt": {name: error.problem for name, error in collapsed.items()},
        "without_start": sum(study.without_start(*cell) for cell in study.cells()),
    }
    try:
        table = study_table(outcomes, resamples)
    except UserError as error:
        if not collapsed:
            raise
        return {"study": "paediatric", **about, "rows": [], "_table": [error.problem, *failed]}
    lines, result = [*lines_of(table), *failed], {**table, **about}
    write_json(study.out / TABLE, result, indent=1)
    commit_file(study.out / "table.md", lambda path: path.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return {**result, "_table": lines}


def _check_spec(adults: Any, children: Any) -> None:
    if adults.spec != children.spec:
        of = [f"{each.spec.seconds:g} s at {each.spec.sampling_rate:g} Hz" for each in (adults, children)]
        raise UsageError(
            f"the adults are {of[0]}, the children {of[1]}", "build both with the same --sampling-rate and --seconds"
        )
