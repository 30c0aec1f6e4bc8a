"""`cardialign registry pull`: a registered encoder as a folder of safetensors and JSON, every digest checked."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import add_tracking_uri, place, place_to_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("encoder", help="NAME (newest), NAME@ALIAS or NAME/VERSION")
    parser.add_argument("out", type=place_to_write, help="new folder")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an encoder there; a folder with anything else is left alone"
    )
    parser.add_argument(
        "--verify",
        type=place,
        metavar="KEY",
        help="only what is signed with this public key, or under a certificate in this file (PEM); extra sign",
    )
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.registry.registry import pull
    from cardialign.cluster.registry.signing import TrustedKey

    trusted = None if args.verify is None else TrustedKey.open(args.verify)
    return pull(args.encoder, args.out, args.tracking_uri, overwrite=args.overwrite, trusted=trusted)
