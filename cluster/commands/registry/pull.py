"""`cardialign registry pull`: a registered encoder as a folder of safetensors and JSON, every digest checked."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import add_tracking_uri, amount, place, place_to_write
from cardialign.data_shards.files import is_sha256


def digest(text: str) -> str:
    """A sha256 in 64 hexadecimal digits."""
    if not is_sha256(text.lower()):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no sha256; write its 64 hexadecimal digits")
    return text.lower()


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
    parser.add_argument(
        "--expect-digest",
        type=digest,
        metavar="SHA256",
        help="only the encoder with this digest; a version whose registry tells none is pulled by it alone",
    )
    parser.add_argument(
        "--max-gb",
        type=amount,
        default=8.0,
        metavar="N",
        help="not more than this, whatever the registry sends (default 8)",
    )
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.registry.registry import pull
    from cardialign.cluster.registry.signing import TrustedKey

    trusted = None if args.verify is None else TrustedKey.open(args.verify)
    return pull(
        args.encoder,
        args.out,
        args.tracking_uri,
        overwrite=args.overwrite,
        trusted=trusted,
        expected=args.expect_digest,
        most=int(args.max_gb * 1e9),
    )
