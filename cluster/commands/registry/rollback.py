"""`cardialign registry rollback`: point an alias at what it pointed at before."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import add_tracking_uri


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("encoder", help="NAME for its production, or NAME@ALIAS")
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.registry.promotion import rollback

    return rollback(args.encoder, args.tracking_uri)


def summary(result: dict[str, Any]) -> list[str]:
    from cardialign.data_shards.shown import shown

    before = "nothing" if result["before"] is None else f"version {result['before']}"
    lines = [f"{result['alias']} of {result['name']}: {before} -> version {result['version']}"]
    lines += [f"passed over, deleted since: version {number}" for number in result["passed_over"]]
    return [shown(line) for line in lines]
