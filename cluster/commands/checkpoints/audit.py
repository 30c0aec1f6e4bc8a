"""`cardialign checkpoints audit`: a part of a run made again from a checkpoint, and compared bit for bit."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.lines import aligned
from cardialign.cluster.cli.options import existing_folder, place, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=place, help="folder of the run; nothing in it is changed")
    parser.add_argument(
        "--from",
        dest="start",
        type=whole_number(0),
        metavar="STEP",
        help="checkpoint to go on from (default: the newest with recorded steps behind it)",
    )
    parser.add_argument(
        "--steps",
        type=whole_number(1),
        metavar="N",
        help="steps that are made again (default: up to the next checkpoint)",
    )
    parser.add_argument("--scratch", type=place, help="where room for a checkpoint or two is (default: TMPDIR)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.drills.audit import audit

    existing_folder(args.run_dir, "run directory", "give the --run-dir of `cardialign pretrain`")
    with tempfile.TemporaryDirectory(prefix="audit-", dir=args.scratch, ignore_cleanup_errors=True) as scratch:
        return audit(args.run_dir.absolute(), Path(scratch), args.start, args.steps)


def summary(result: dict[str, Any]) -> list[str]:
    steps = f"steps {result['from_step'] + 1} to {result['to_step']}"
    weights = " and the weights" if result["weights_compared"] else ""
    said = (
        f"equal: {steps}, trace, digest{weights}, bit for bit"
        if result["equal"]
        else f"differs: {result['difference']}"
    )
    about = {"topology": result["topology"], "but": result["other_topologies"]}
    return [said, *aligned(about)]
