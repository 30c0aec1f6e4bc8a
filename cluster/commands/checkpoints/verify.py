"""`cardialign checkpoints verify`: every file of every committed checkpoint against its digest.

Nothing is moved or changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.options import existing_folder
from cardialign.data_shards.errors import DONE, FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="folder of the run")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.pretrain.training.checkpoints.files import list_checkpoints, problems

    existing_folder(args.run_dir, "run directory", "give the --run-dir of `cardialign pretrain`")
    rows = [{"step": c.step, "path": str(c.path), "problems": problems(c.path)} for c in list_checkpoints(args.run_dir)]
    bad = [row for row in rows if row["problems"]]
    return {
        "checkpoints": rows,
        "verified": len(rows) - len(bad),
        "damaged": len(bad),
        "exit_code": FAILED if bad else DONE,
    }


def summary(result: dict[str, Any]) -> list[str]:
    lines = []
    for row in result["checkpoints"]:
        lines.append(f"step {row['step']:>8}  {'damaged' if row['problems'] else 'ok'}")
        lines += [f"  - {problem}" for problem in row["problems"]]
    if result["damaged"]:
        lines.append("the run will skip damaged checkpoints and continue from the newest one that is ok")
    return lines or ["no committed checkpoint"]
