"""`cardialign export`: newest verified checkpoint of a run -> a folder that a consumer can trust."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import place, place_to_write, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=place, help="folder of the run")
    parser.add_argument("--out", type=place_to_write, help="new folder (default RUN_DIR/export)")
    parser.add_argument("--step", type=whole_number(0), metavar="N", help="of this checkpoint, not of the newest")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.pretrain.export.from_run import export_run

    return export_run(args.run_dir, args.out, overwrite=args.overwrite, step=args.step)
