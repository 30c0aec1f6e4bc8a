"""`cardialign export`: newest verified checkpoint of a run -> a folder that a consumer can trust."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import place, place_to_write, whole_number
from cardialign.data_shards.errors import UsageError

if TYPE_CHECKING:
    from cardialign.pretrain.export.exposure.salt import CertificateSalt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=place, help="folder of the run")
    parser.add_argument("--out", type=place_to_write, help="new folder (default RUN_DIR/export)")
    parser.add_argument("--step", type=whole_number(0), metavar="N", help="of this checkpoint, not of the newest")
    parser.add_argument(
        "--onnx", action="store_true", help='also write encoder.onnx, for onnxruntime (pip install "cardialign[onnx]")'
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder")
    parser.add_argument(
        "--salt-file",
        type=place,
        metavar="FILE",
        help="salt of the exposure certificate (default: a random one, kept in RUN_DIR/exposure.salt and in no export)",
    )
    parser.add_argument(
        "--public-salt",
        action="store_true",
        help="put that salt into the certificate: anybody can then ask which records and patients were trained on, and "
        "try out names; for public archives",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.pretrain.export.from_run import export_run

    return export_run(
        args.run_dir, args.out, overwrite=args.overwrite, step=args.step, onnx=args.onnx, salt=_salt(args)
    )


def _salt(args: argparse.Namespace) -> CertificateSalt | None:
    """Raises UsageError for a file that holds none, and for a public one that is kept nowhere."""
    from cardialign.pretrain.export.exposure.salt import CertificateSalt, given_salt, salt_of_run

    if args.salt_file is None and not args.public_salt:
        return None
    secret = salt_of_run(args.run_dir) if args.salt_file is None else given_salt(args.salt_file)
    if secret is None:
        raise UsageError(f"the salt cannot be kept in {args.run_dir}", "give --salt-file")
    return CertificateSalt(secret, args.public_salt)
