"""`cardialign evaluate grid`: every task of a protocol x every share of its training records, from one command."""

from __future__ import annotations

import argparse
from argparse import ArgumentTypeError
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import (
    add_allow_trained,
    add_encoder,
    add_label_files,
    add_tracking_uri,
    place,
    place_to_write,
)
from cardialign.cluster.cli.result_file import check_place, write_rows
from cardialign.cluster.commands.evaluate.linear_probe import (
    add_probe,
    add_track,
    check_track,
    executor_of,
    probe_plan,
)
from cardialign.data_shards.errors import UsageError

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.grid.result import GridResult

RESULT, ROWS = "grid.json", "grid.csv"


def named_set(text: str) -> tuple[str, Path]:
    """`ptb-xl=FOLDER` -> its two sides."""
    name, equals, folder = text.partition("=")
    if not equals or not name.strip() or not folder.strip():
        raise ArgumentTypeError(f"{text[:60]!r} is not NAME=SHARDS; write for example ptb-xl=work/ptb-xl")
    return name.strip(), place(folder.strip())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder(parser)
    parser.add_argument(
        "--sets",
        type=named_set,
        action="append",
        required=True,
        metavar="NAME=SHARDS",
        help="a data set of the protocol, and the folder or URL of its shard set; once for each set",
    )
    parser.add_argument(
        "--protocol", default="clean-v2", metavar="NAME", help="whose tasks are probed (default clean-v2)"
    )
    add_label_files(parser)
    add_probe(parser, (0.01, 0.1, 1.0))
    add_allow_trained(parser)
    parser.add_argument(
        "--out",
        type=place_to_write,
        required=True,
        metavar="FOLDER",
        help=f"new folder for {RESULT}, {ROWS} and the cells; the same command goes on in it "
        "(on a cluster: on a filesystem that all nodes share)",
    )
    add_track(parser)
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.evaluations.kept import of_grid, write_with_scores
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.grid.grid import GridWork, run_grid
    from cardialign.pretrain.evaluation.grid.plan import GridPlan

    check_track(args)
    names = [name for name, _ in args.sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"--sets names {twice[0]} twice", "give each set once")
    check_place(args.out)
    sets = {name: ShardSet.open(folder) for name, folder in args.sets}
    plan = GridPlan(args.protocol, sets, probe_plan(args), args.label_files)
    with (
        open_encoder(args.encoder, args.tracking_uri, args.trust_remote_code) as encoder,
        Progress("grid: features") as features,
        Progress("grid: cells") as cells,
    ):
        work = GridWork(executor_of(args), features, cells)
        found = run_grid(encoder, plan, args.out, work, allow_trained=args.allow_trained)
    result = found.to_dict()
    how = {"encoder": result["encoder"], "subset": args.subset}
    write_with_scores(args.out / RESULT, result, of_grid(found, sets, how))
    write_rows(args.out / ROWS, found.flat())
    if args.track:
        _track(args, encoder.digest, found, sets)
    return {**result, "out": str(args.out), "_table": found.table()}


def _track(args: argparse.Namespace, digest: str, found: GridResult, sets: Mapping[str, ShardSet]) -> None:
    """Figures and, where their cells hold them, scores of every task and share, beside the version."""
    from cardialign.cluster.evaluations.kept import of_probe
    from cardialign.cluster.registry.evidence import log_evaluation

    opened = {each.task.name: each for each in found.opened}
    how = {"encoder": digest, "subset": args.subset}
    for name, result in found.tasks.items():
        task, shard_set = opened[name].found, sets[opened[name].set_name]
        for figure in result.tracked():
            share = figure["share"]
            scored = None
            if task is not None and share in result.scored:
                scored = of_probe(result, task, shard_set, share, how)
            prefix = f"grid/{args.protocol}/{name}/{100 * share:g}"
            log_evaluation(args.encoder, args.tracking_uri, prefix, figure, scored)


def summary(result: dict[str, Any]) -> list[str]:
    kept = f"kept in {result['out']}: {RESULT}, {ROWS}; its work/ spares a call with more shares the reading of records"
    return [*str(result["_table"]).splitlines(), "", f"{kept}, and may be deleted"]
