"""`cardialign runs page`: one self-contained page about a run, to mail, archive or print."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.options import add_folds, file_to_write, place, whole_number
from cardialign.cluster.cli.result_file import check_place
from cardialign.data_shards.errors import UsageError

PAGES = (".html", ".htm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run directory, finished or not")
    parser.add_argument("--out", type=file_to_write, required=True, metavar="FILE", help="write the page (.html) there")
    parser.add_argument(
        "--evaluation", type=Path, action="append", default=[], metavar="FILE",
        help="a result of `evaluate ... --out`, whose figures the page shows; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--shards", type=place, help="a shard set: a map of its records, some of them drawn, and what is retrieved"
    )
    parser.add_argument("--labels", metavar="SET", help="label set that colours the map (default: the only one)")
    add_folds(parser, "only these folds of --shards")
    parser.add_argument(
        "--records", type=whole_number(0, 20), default=3, metavar="N", help="of --shards that are drawn (default 3)"
    )
    parser.add_argument(
        "--price", action="append", default=[], metavar="[KIND=]AMOUNT", help="of one device (CPU: core) for one hour"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.comparison.costs import prices_of
    from cardialign.cluster.pages.examples import ShownRecords
    from cardialign.cluster.pages.report import write_report

    if args.out.suffix.lower() not in PAGES:
        raise UsageError(f"--out {args.out} is no page", "name a file that ends in .html")
    if args.shards is None and (args.labels is not None or args.folds is not None):
        raise UsageError("--labels and --folds are of --shards, which is not given", "add --shards, or leave them out")
    prices = prices_of(args.price)
    check_place(args.out)
    records = None if args.shards is None else ShownRecords(args.shards, args.folds, args.records, args.labels)
    return write_report(args.run_dir, args.out, args.evaluation, records, prices)


def summary(result: dict[str, Any]) -> list[str]:
    shown = f"{result['evaluations']} evaluations, {result['records_shown']} records"
    lines = [f"page        {result['page']}", f"of          {result['run_dir']}, {result['steps']:,} steps; {shown}"]
    return [*lines, *(f"left out    {why}" for why in result["left_out"])]
