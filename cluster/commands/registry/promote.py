"""`cardialign registry promote`: point an alias at a version."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import add_tracking_uri, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="registered encoder")
    parser.add_argument("version", type=whole_number(1), help="version that the alias will point to")
    parser.add_argument("--alias", default="production", help="default production")
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.registry.registry import promote

    return promote(args.name, args.version, args.alias, args.tracking_uri)
