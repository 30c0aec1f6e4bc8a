"""`cardialign logs`: what the driver of a job prints, or what one of its workers wrote."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import whole_number
from cardialign.cluster.jobs.options import add_job, cluster_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    parser.add_argument("--follow", action="store_true", help="go on with what comes, until the job ends")
    parser.add_argument("--rank", type=whole_number(0), metavar="K", help="the log of this worker instead")
    parser.add_argument("--lines", type=whole_number(1, 1_000_000), default=1000, metavar="N", help="last (1000)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.jobs.job import absolute_local, find_job
    from cardialign.cluster.jobs.reading import follow, newest_worker_log, text_of

    folder = absolute_local(args.job) if args.rank is not None else None
    if folder is not None:
        return {"_lines": newest_worker_log(folder, args.rank, args.lines), "run_dir": str(folder)}
    client = cluster_of(args)
    job = find_job(client, args.job)
    if args.follow and not args.json:
        return {"job": follow(client, job, args.rank).id, "_lines": []}
    lines = text_of(client, job, args.rank, args.lines)
    return {"job": job.id, "lines": lines if args.json else len(lines), "_lines": lines}


def summary(result: dict[str, Any]) -> list[str]:
    return list(result["_lines"])
