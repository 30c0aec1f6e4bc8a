"""`cardialign checkpoints list`: the committed checkpoints of a run."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import existing_folder, place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=place, help="folder of the run")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.pretrain.training.checkpoints.files import list_checkpoints

    existing_folder(args.run_dir, "run directory", "give the --run-dir of `cardialign pretrain`")
    found = list_checkpoints(args.run_dir)
    rows = [{"step": c.step, "path": str(c.path), "bytes": c.bytes, "created": c.created, **c.summary} for c in found]
    return {"run_dir": str(args.run_dir), "checkpoints": rows}


def summary(result: dict[str, Any]) -> list[str]:
    rows = result["checkpoints"]
    return [
        f"step {row['step']:>8}  {row['bytes'] / 2**20:8.1f} MiB  {row['created']}  {row['path']}" for row in rows
    ] or ["no committed checkpoint"]
