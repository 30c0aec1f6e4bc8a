"""`cardialign shards build`: a data set on disk -> a shard set."""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.options import add_workers, place_to_write, whole_number
from cardialign.cluster.cli.progress import Progress, two_stages
from cardialign.cluster.cli.source_options import add_reader_options, add_source, asked_source, in_words_of_flags

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("--out", type=place_to_write, required=True, help="folder of the shard set")
    parser.add_argument("--codec", default="einthoven", help="einthoven (default, lossless) or npy")
    parser.add_argument("--records-per-shard", type=whole_number(1), default=2048, metavar="N", help="default 2048")
    add_workers(parser, 0, "processes, 0 = one per core")
    parser.add_argument(
        "--address",
        metavar="auto|HOST:PORT|local",
        help="build as Ray tasks: on the cluster at this address "
        "(--root and --out on a filesystem that all nodes share), or on a local Ray",
    )
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="read at most so many records")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished shard set")
    add_reader_options(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    with in_words_of_flags(args.source):
        return _built(args)


def _built(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.build.build import SetPlan, build_shards
    from cardialign.data_shards.record import SignalSpec

    source = asked_source(args, args.root if args.address is None else args.root.absolute())
    executor = None
    if args.address is not None:
        from cardialign.cluster.builds.ray_tasks import RayTasks

        executor = RayTasks(None if args.address == "local" else args.address, args.workers)
    with Progress("shards build: listing records") as listing, Progress("shards build") as building:
        built = build_shards(
            source,
            args.out if executor is None else args.out.absolute(),
            SetPlan(
                SignalSpec(args.sampling_rate, args.seconds),
                codec=args.codec,
                records_per_shard=args.records_per_shard,
                folds=args.folds,
                limit=args.limit,
            ),
            workers=args.workers,
            overwrite=args.overwrite,
            progress=two_stages(listing, building),
            executor=executor,
        )
    return asdict(built) | _repeats(built.path)


def _repeats(path: Path) -> dict[str, Any]:
    """Recordings that the set holds more than once, told and counted; nothing where there are none."""
    from cardialign.data_shards.checks.repeats import find_repeats
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    found = find_repeats([ShardSet.open(path)])
    if not found.records:
        return {}
    log.warning(
        "recordings that are there again records=%d under several patients=%d in several folds=%d: what is learnt from "
        "one is no secret in the other, keep one of each: %s",
        found.records,
        found.patients,
        found.folds,
        "; ".join(" = ".join(keys) for keys in found.examples),
    )
    return {"repeats": {"records": found.records, "patients": found.patients, "folds": found.folds}}
