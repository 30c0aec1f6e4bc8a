"""`cardialign bench data`: how fast records go from shards to float batches on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="?", type=Path, help="shard set to read (default: a small virtual one, made for the purpose)")
    parser.add_argument(
        "--scale", action="store_true", help="also the start of a run on made-up indexes of 0.8 and 10 million records (minutes)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from data_shards.benchmark import measure_data
    from data_shards.benchmark_order import measure_scale
    from data_shards.shard_set import ShardSet

    figures = measure_data(ShardSet.open(args.shards) if args.shards is not None else None)
    return figures | measure_scale() if args.scale else figures
