"""`cardialign submit ... -- COMMAND ...`: the command as a job of a Ray cluster; its id is printed at once."""

from __future__ import annotations

import argparse
import os
from typing import Any

from cardialign.cluster.cli.options import number_of_cpus, size_in_bytes
from cardialign.cluster.jobs.options import add_cluster, cluster_of
from cardialign.data_shards.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "cardialign submit [options] --name NAME -- COMMAND ..."
    parser.epilog = (
        "COMMAND is any command of cardialign without --address: -- pretrain --recipe NAME --shards SET --run-dir DIR. "
        "Places are those of the cluster; a YAML file of this machine travels along. The same name again, once its job "
        "has ended, continues the same run."
    )
    add_cluster(parser)
    parser.add_argument("--name", required=True, help="of the run, any text; yours alone, whatever others use")
    parser.add_argument(
        "--wheel",
        metavar="SPEC",
        help="run this instead of the package as it is here: a wheel's file, a requirement that the nodes can install, "
        "or `image` for nodes that have it",
    )
    parser.add_argument("--cpus", type=number_of_cpus, default=0.0, metavar="N", help="kept for the driver (default 0)")
    parser.add_argument("--memory", type=size_in_bytes, default=0, metavar="8GiB", help="kept for the driver")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.jobs.submission import Driver, judge_driver, submit
    from cardialign.cluster.jobs.words import Reader, judge, on_this_machine

    words = list(args.behind)
    reader = Reader(lambda words: args.parser_of(words).parse_known_args(list(words)), _config_of)
    driver = Driver(args.wheel, args.cpus, args.memory)
    judge_driver(args.name, driver)
    judge(words, reader, os.environ, here=True)  # what is wrong everywhere needs no cluster to be found
    client = cluster_of(args)
    inner = judge(words, reader, os.environ, here=on_this_machine(client.session))
    return submit(client, args.name, inner, driver, os.environ)


def _config_of(args: argparse.Namespace) -> Any:
    """The configuration of a run that is about to be submitted, None for another command."""
    if args.command != "pretrain":
        return None
    from cardialign.cluster.commands.pretrain import overrides
    from cardialign.cluster.runs.placement import placement_of
    from cardialign.pretrain.config import load_config

    placement_of(args)
    config = load_config(args.recipe, overrides(args))
    if not config.data.parts:
        raise UsageError("pretrain: no shard set is named", "give --shards or --mixture")
    return config


def summary(result: dict[str, Any]) -> list[str]:
    lines = [f"job {result['job']} is submitted to {result['address']}"]
    if result["continues"]:
        lines.append(f"it goes on with the work of {result['continues']}")
    size = f": {result['files']} files, {result['bytes'] / 1024:.0f} KiB" if result["bytes"] else ""
    lines.append(f"uploaded: {result['travels']}{size}" + "".join(f"; {path}" for path in result["yaml"]))
    if result["environment"]:
        lines.append(f"environment handed on: {' '.join(result['environment'])}")
    if result["stays"]:
        lines.append(
            "not handed on (set it on the nodes): " + ", ".join(f"{n} ({w})" for n, w in result["stays"].items())
        )
    return [*lines, f"next: cardialign status {result['job']}"]
