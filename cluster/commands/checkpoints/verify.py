"""`cardialign checkpoints verify`: every file of every committed checkpoint against its digest, and what its pickles
would import, as a start looks at them.

Nothing is moved or changed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import existing_folder, place
from cardialign.data_shards.errors import DONE, FAILED

if TYPE_CHECKING:
    from cardialign.pretrain.training.checkpoints.condition import Finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=place, help="folder of the run")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.pretrain.training.checkpoints.condition import examine
    from cardialign.pretrain.training.checkpoints.files import list_checkpoints

    existing_folder(args.run_dir, "run directory", "give the --run-dir of `cardialign pretrain`")
    found = [_judged(examine(one.path)) for one in list_checkpoints(args.run_dir)]
    rows = [
        {"step": one.step, "path": str(one.path), "condition": one.condition, "problems": list(one.reasons)}
        for one in found
    ]
    verified = sum(one.condition == "verified" for one in found)
    return {
        "checkpoints": rows,
        "verified": verified,
        "damaged": sum(one.condition == "damaged" for one in found),
        "exit_code": DONE if verified == len(found) else FAILED,
    }


def _judged(found: Finding) -> Finding:
    """A checkpoint whose files are as they were written may still be somebody else's: a start would refuse it."""
    from cardialign.pretrain.training.checkpoints.files import CheckpointError
    from cardialign.pretrain.training.checkpoints.pickles import check_pickles

    if found.condition == "verified":
        try:
            check_pickles(found.path, found.names)
        except CheckpointError as error:
            problem = error.problem.removeprefix(f"checkpoint {found.path}: ")
            return replace(found, condition="foreign", reasons=(problem,))
    return found


def summary(result: dict[str, Any]) -> list[str]:
    lines = []
    for row in result["checkpoints"]:
        lines.append(f"step {row['step']:>8}  {'ok' if row['condition'] == 'verified' else row['condition']}")
        lines += [f"  - {problem}" for problem in row["problems"]]
    if result["damaged"]:
        lines.append(
            "the run will skip damaged checkpoints and continue from the newest one that is ok"
            if result["verified"]
            else "no checkpoint is ok: the run will not continue, nor begin again without --start-over"
        )
    return lines or ["no committed checkpoint"]
