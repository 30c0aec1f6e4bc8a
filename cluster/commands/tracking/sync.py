"""`cardialign tracking sync`: replay what a run has in its spool to MLflow. Repeating it changes nothing."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=place, help="folder of the run")
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="another store than the run was started with, or its user and password"
    )
    parser.add_argument("--new-run", action="store_true", help="all steps into a new MLflow run: the old one is gone")
    parser.add_argument("--experiment", help="a new MLflow run in this experiment")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.tracking.replay import sync

    return sync(args.run_dir, args.tracking_uri, experiment=args.experiment, new_run=args.new_run)
