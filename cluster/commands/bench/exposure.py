"""`cardialign bench exposure`: how long the questions to an exposure certificate take on one core of this machine."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--names", type=whole_number(1, 10**7), default=1_000_000, metavar="N", help="asked for (default 1000000)"
    )
    parser.add_argument(
        "--listed", type=whole_number(1, 10**7), default=1_000_000, metavar="N", help="in the list (default 1000000)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.pretrain.benchmarks.exposure import time_questions

    return {"listed": args.listed, "rows": time_questions(args.names, args.listed)}


def summary(result: dict[str, Any]) -> list[str]:
    rows = [
        f"{row['names']} names, {row['in_the_list']} of them in it ({row['found']}): {row['seconds']:.2f} s of one core"
        for row in result["rows"]
    ]
    return [f"a list of {result['listed']} names", *rows]
