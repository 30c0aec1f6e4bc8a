"""`cardialign checkpoints list`: the committed checkpoints of a run."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.cluster.cli.options import existing_folder, place
from cardialign.data_shards.shown import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=place, help="folder of the run")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.pretrain.training.checkpoints.files import list_checkpoints

    existing_folder(args.run_dir, "run directory", "give the --run-dir of `cardialign pretrain`")
    found = list_checkpoints(args.run_dir)
    rows = [
        {
            **_told(c.summary),
            "step": c.step,
            "path": str(c.path),
            "bytes": c.bytes,
            "created": shown(c.created)[:40],
        }
        for c in found
    ]
    return {"run_dir": str(args.run_dir), "checkpoints": rows}


def _told(summary: dict[str, Any]) -> dict[str, Any]:
    """What a manifest, which anybody may have sealed, says beside its files: its plain values."""
    return {key: value for key, value in summary.items() if value is None or isinstance(value, str | int | float)}


def summary(result: dict[str, Any]) -> list[str]:
    rows = result["checkpoints"]
    return [
        f"step {row['step']:>8}  {row['bytes'] / 2**20:8.1f} MiB  {row['created']}  {row['path']}" for row in rows
    ] or ["no committed checkpoint"]
