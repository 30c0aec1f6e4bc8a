"""`cardialign status`: how a job and its run stand, by the run directory where it is seen, else by the job's log."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.lines import aligned
from cardialign.cluster.jobs.options import add_job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    parser.add_argument(
        "--watch", action="store_true", help="show it until it has ended, drawn where this is a terminal"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.jobs.standing import standing, watch

    return (watch if args.watch else standing)(args.job, args.address, args.ca)


def summary(result: dict[str, Any]) -> list[str]:
    from cardialign.cluster.jobs.standing import told

    return aligned(told(result))
