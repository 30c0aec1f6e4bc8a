"""`cardialign list`: your jobs on a cluster, newest first."""

from __future__ import annotations

import argparse
import time
from typing import Any

from cardialign.cluster.jobs.options import add_cluster, cluster_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cluster(parser)
    parser.add_argument("--all", action="store_true", help="of all users, and jobs that are not ours")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.jobs.job import WORDS, list_jobs, this_user

    jobs = [job for job in list_jobs(cluster_of(args)) if args.all or job.user == this_user()]
    return {
        "jobs": [
            {
                "job": job.id, "state": WORDS.get(job.status, job.status), "name": job.name, "user": job.user,
                "host": job.metadata.get("host", ""), "started": job.started, "ended": job.ended,
                "exit_code": job.exit_code, "run_dir": job.run_dir, "out": job.metadata.get("out", ""),
                "command": job.metadata.get("command", "") if job.ours else job.entrypoint,
                "version": job.metadata.get("version", ""), "commit": job.metadata.get("commit", ""),
            }
            for job in jobs
        ]
    }  # fmt: skip


def summary(result: dict[str, Any]) -> list[str]:
    rows = [("JOB", "STATE", "USER", "STARTED", "NAME", "WHERE")]
    for job in result["jobs"]:
        when = "" if job["started"] is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(job["started"]))
        rows.append((job["job"], job["state"], job["user"], when, _short(job["name"]), job["run_dir"] or job["out"]))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    padded = [[f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)] for row in rows]
    lines = ["  ".join([*cells, row[5]]).rstrip() for cells, row in zip(padded, rows, strict=True)]
    return lines if result["jobs"] else ["no jobs"]


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:37]}..."
