"""`cardialign evaluate explain-gap`: which settings of two protocols make an encoder's figures differ, and how much."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.options import (
    add_allow_trained,
    add_bootstrap,
    add_encoder,
    add_label_files,
    add_tracking_uri,
    json_to_write,
    whole_number,
)
from cardialign.cluster.cli.result_file import check_place, write_result

MODES = ("zero-shot", "linear-probe")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_encoder(parser, "encoder")
    parser.add_argument("--shards", type=Path, required=True, help="folder or URL of the shard set")
    parser.add_argument("--from", dest="start", required=True, metavar="PROTOCOL", help="the protocol to start from")
    parser.add_argument("--to", dest="end", required=True, metavar="PROTOCOL", help="the one whose settings are tried")
    parser.add_argument("--task", help="only this task of both, e.g. ptb-xl-super (default: all of this data set)")
    parser.add_argument("--mode", choices=MODES, default=MODES[0], help="what is evaluated (default zero-shot)")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="the part to score (default test)")
    add_label_files(parser)
    add_bootstrap(parser)
    parser.add_argument("--seed", type=whole_number(0, 2**64 - 1), default=0, help="of the bootstrap (default 0)")
    add_allow_trained(parser)
    parser.add_argument("--out", type=json_to_write, help="write the full result there as JSON")
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.cli.progress import Progress
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.gap import GapOptions, explain_gap, open_side, shared_tasks, table_of
    from cardialign.pretrain.evaluation.ledger import opening_line
    from cardialign.pretrain.evaluation.openings import ScoredPart, open_test
    from cardialign.pretrain.evaluation.overlap import find_overlap, refuse_overlap

    if args.out is not None:
        check_place(args.out)
    shard_set = ShardSet.open(args.shards)
    tasks = [args.task] if args.task else shared_tasks(args.start, args.end, shard_set)
    sides = [
        tuple(
            open_side(f"{name}:{task}", shard_set, args.mode, args.label_files, args.split)
            for name in (args.start, args.end)
        )
        for task in tasks
    ]
    options = GapOptions(args.mode, args.bootstrap, args.seed)
    gaps, seen, openings = [], {}, {}
    with open_encoder(args.encoder, args.tracking_uri, args.trust_remote_code) as encoder:
        for start, end in sides:
            for side in (start, end):
                overlap = find_overlap(encoder, shard_set, side.pools[side.scored])
                if not args.allow_trained:
                    refuse_overlap(overlap, encoder, shard_set)
                seen[side.task.spec] = overlap.to_dict()
            with Progress(start.task.name) as progress:
                gaps.append(explain_gap(encoder, shard_set, start, end, options, progress))
            for side in (start, end) if args.split == "test" else ():
                part = ScoredPart(side.task.spec, shard_set, side.scored_rows(shard_set))
                run = encoder.training_run()
                openings[side.task.spec] = open_test(part, run, "evaluate explain-gap", args.encoder)
        result = {
            "gaps": [each.to_dict() for each in gaps],
            "trained_on": seen,
            "test_opened": openings,
            "bootstrap": {"resamples": args.bootstrap, "seed": args.seed, "unit": "patient"},
            "encoder": encoder.digest,
            "shards": shard_set.fingerprint,
        }
    if args.out is not None:
        write_result(args.out, result)
    return {**result, "_table": "\n\n".join([table_of(gaps), *map(opening_line, openings.values())])}


def summary(result: dict[str, Any]) -> list[str]:
    return str(result["_table"]).splitlines()
