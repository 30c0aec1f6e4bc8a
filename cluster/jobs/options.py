"""Options that the commands on jobs share."""

from __future__ import annotations

import argparse

from cardialign.cluster.cli.options import place
from cardialign.cluster.jobs.client import JobsClient, connect


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
    return connect(args.address, args.ca)
