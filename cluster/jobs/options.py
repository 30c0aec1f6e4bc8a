"""Options that the commands on jobs share."""

from __future__ import annotations

import argparse
import os

from cardialign.cluster.cli.options import place
from cardialign.cluster.jobs.client import JobsClient, connect
from cardialign.data_shards.errors import UsageError

WITHOUT_A_JOB = {
    "logs": "--rank 0 shows what a worker wrote into its run directory",
    "stop": "a run that nobody submitted ends at a checkpoint by SIGTERM to its command, or by: touch {}/STOP",
}
"""What serves for a run on plain hosts."""


def add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="http://HOST:8265",
        help="the cluster's dashboard, or its KubeRay service, http or https (default: RAY_ADDRESS); its token comes "
        "from RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN, headers of a proxy from RAY_JOB_HEADERS",
    )
    parser.add_argument("--ca", type=place, metavar="FILE", help="certificates that signed the cluster's own (PEM)")


def add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="NAME|JOB|RUN_DIR", help="name of a job, its id, or its run directory")
    add_cluster(parser)


def cluster_of(args: argparse.Namespace) -> JobsClient:
    """The cluster of the options. Raises as `connect`; of a run directory without one, saying what else serves."""
    word = str(getattr(args, "job", ""))
    if os.sep in word and args.address is None and not os.environ.get("RAY_ADDRESS"):
        raise UsageError(
            f"no cluster is named that would know the job of {word}",
            f"give --address http://HOST:8265, or set RAY_ADDRESS to it; {WITHOUT_A_JOB[args.command].format(word)}",
        )
    return connect(args.address, args.ca)
