"""`cardialign evaluate masker`: what the masker of a SCAR-R run removes, per class, in figures and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.options import (
    add_bootstrap,
    add_draw_seed,
    add_drawn_records,
    add_folds,
    add_split,
    json_to_write,
    part,
    place,
    place_to_write,
)
from cardialign.cluster.cli.result_file import check_place, write_result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a run of method scar")
    parser.add_argument("--shards", type=place, required=True, help="folder or URL of the shard set")
    parser.add_argument("--prompts", required=True, help="prompt set whose classes are told apart")
    parser.add_argument("--share", type=part, default=0.3, help="of each record that is removed (default 0.3)")
    add_drawn_records(parser)
    parser.add_argument("--pictures", type=place_to_write, metavar="DIR", help="a 12-lead picture of each class there")
    add_folds(parser, "only these folds")
    add_split(parser, "only this part")
    add_bootstrap(parser)
    add_draw_seed(parser)
    parser.add_argument("--out", type=json_to_write, help="write the full result there as JSON")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.cli.progress import Progress
    from cardialign.data_shards.errors import disk_error
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.data_shards.signal.plot import draw_ecg
    from cardialign.pretrain.evaluation.missingness.evaluate import drawn_records
    from cardialign.pretrain.evaluation.missingness.removed import what_is_removed
    from cardialign.pretrain.evaluation.missingness.trained_masker import open_masker
    from cardialign.pretrain.evaluation.task import labelled_task

    if args.out is not None:
        check_place(args.out)
    shard_set = ShardSet.open(args.shards)
    task = labelled_task(shard_set, args.prompts, args.folds, split=args.split)
    task = drawn_records(task, args.records, args.seed)
    masker = open_masker(args.run_dir, shard_set.spec)
    drawing = {"resamples": args.bootstrap, "seed": args.seed}
    with Progress("masker") as progress:
        found = what_is_removed(shard_set, task, masker.ranking, args.share, **drawing, progress=progress)
    pictures = []
    if args.pictures is not None:
        try:
            args.pictures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, args.pictures) from error
        for code, (row, removed) in found.examples.items():
            path = args.pictures / f"{code}.png"
            draw_ecg(shard_set.read_record(row), path, marked=removed)
            pictures.append(str(path))
    result = {**found.to_dict(), "masker": masker.learnt, "pictures": pictures, "bootstrap": drawing}
    result["shards"] = shard_set.fingerprint
    if args.out is not None:
        write_result(args.out, result)
    return {**result, "_table": "\n".join([*found.table(), masker.learnt, *pictures])}


def summary(result: dict[str, Any]) -> list[str]:
    return str(result["_table"]).splitlines()
