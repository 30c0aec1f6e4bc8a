"""`cardialign bench data`: how fast records go from shards to float batches on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="?", type=Path, help="shard set to read (default: a small virtual one, made for the purpose)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from data_shards.benchmark import measure_data
    from data_shards.shard_set import ShardSet

    return measure_data(ShardSet.open(args.shards) if args.shards is not None else None)
