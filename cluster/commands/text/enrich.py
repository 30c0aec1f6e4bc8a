"""`cardialign text enrich`: intervals and axes that the device measured, in words behind each report."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import place, place_to_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=place, help="folder or URL of a shard set of mimic-iv-ecg")
    parser.add_argument("--out", type=place_to_write, required=True, metavar="FOLDER", help="new folder of the reports")
    parser.add_argument(
        "--measurements",
        type=place,
        required=True,
        metavar="PATH",
        help="machine_measurements.csv, or the folder of the data set that holds it",
    )
    parser.add_argument("--reports", type=place, metavar="FOLDER", help="enrich these reports beside the set instead")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.build.enrich import enrich_reports
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    return enrich_reports(ShardSet.open(args.shards, reports=args.reports), args.measurements, args.out)
