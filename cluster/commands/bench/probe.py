"""`cardialign bench probe`: how long a linear probe takes on one core of this machine, features given."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import whole_number
from cardialign.cluster.commands.evaluate.linear_probe import shares


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--records", type=whole_number(20, 10**7), default=20_000, metavar="N", help="of all parts (default 20000)"
    )
    parser.add_argument("--recipe", default="cardialign-small", help="whose features' width (default cardialign-small)")
    parser.add_argument("--width", type=whole_number(1, 10**6), metavar="N", help="that width instead")
    parser.add_argument("--classes", type=whole_number(1, 10_000), default=5, metavar="N", help="default 5")
    parser.add_argument("--shares", type=shares, default=(0.01, 0.1, 1.0), metavar="1,10,100", help="default 1,10,100")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.record import SignalSpec
    from cardialign.pretrain.benchmarks.probe import time_probe
    from cardialign.pretrain.config import load_config
    from cardialign.pretrain.encoders.base import create_encoder

    width = args.width
    if width is None:
        width = create_encoder(load_config(args.recipe).encoder, SignalSpec(500, 10)).feature_width
    rows = time_probe(args.records, width, args.classes, args.shares)
    return {"records": args.records, "width": width, "classes": args.classes, "cores": 1, "rows": rows}


def summary(result: dict[str, Any]) -> list[str]:
    head = f"{result['records']} records x {result['width']} features, {result['classes']} classes, one core"
    rows = [f"{row['read_by']:18s} {100 * row['share']:5g} %  {row['seconds']:8.1f} s" for row in result["rows"]]
    return [head, *rows]
