"""`cardialign stop`: the first asks a job to end at a checkpoint, the second ends it at once."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.jobs.options import add_job, cluster_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    parser.add_argument("--any-user", action="store_true", help="also a job of somebody else")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.jobs.stopping import stop

    return stop(cluster_of(args), args.job, any_user=args.any_user)


def summary(result: dict[str, Any]) -> list[str]:
    return [f"job {result['job']}: {result['done']}"]
