"""`cardialign registry show`: the card of a registered encoder, from the registry as it is now."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import add_tracking_uri


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("encoder", help="NAME (newest), NAME@ALIAS or NAME/VERSION")
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.registry.card import read_card

    return read_card(args.encoder, args.tracking_uri)


def summary(result: dict[str, Any]) -> list[str]:
    from cardialign.cluster.registry.card import markdown

    return markdown(result)
