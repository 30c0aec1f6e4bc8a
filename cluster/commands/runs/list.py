"""`cardialign runs list`: the runs in a folder, and how each stands, by its files alone."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import UsageError

DEEPEST = 3
"""Folders below the one that is named, in which runs are looked for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help=f"folders with runs, up to {DEEPEST} levels below them"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.watching.state import run_state
    from cardialign.data_shards.files import read_json
    from cardialign.pretrain.run.files import CONFIG

    for folder in args.folders:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder", "name the folder in which the run directories lie")
    found = []
    for place in dict.fromkeys(path for folder in args.folders for path in _runs(folder)):
        state, method = run_state(place), (read_json(place / CONFIG) or {}).get("method")
        last = state.checkpoint
        found.append(
            {
                "run_dir": str(place),
                "name": state.name,
                "state": state.state,
                "method": str(method.get("name")) if isinstance(method, dict) else None,
                "step": state.step,
                "steps": state.steps,
                "loss": state.loss,
                "checkpoint_step": last.step or None,
                "restarts": len(state.restarts),
                "problem": None if state.failure is None else state.failure["problem"],
            }
        )
    return {"runs": found}


def _runs(folder: Path) -> Iterator[Path]:
    """Run directories at and below a folder, by name. What lies within a run is no run of its own."""
    from cardialign.pretrain.run.files import ATTEMPT, CONFIG

    for place, folders, names in os.walk(folder):  # which passes over what cannot be read
        deep = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(each for each in folders if not each.startswith(".")) if deep < DEEPEST else []
        if CONFIG in names or ATTEMPT in names:
            folders.clear()
            yield Path(place)


def summary(result: dict[str, Any]) -> list[str]:
    from cardialign.data_shards.shown import shown

    if not result["runs"]:
        return ["no runs"]
    rows = [("STATE", "STEP", "LOSS", "CHECKPOINT", "RESTARTS", "METHOD", "NAME", "RUN DIRECTORY")]
    for each in result["runs"]:
        step = f"{each['step']}/{each['steps']}" if each["steps"] else str(each["step"])
        loss = "-" if each["loss"] is None else f"{each['loss']:.4g}"
        last = "-" if each["checkpoint_step"] is None else str(each["checkpoint_step"])
        words = (each["method"] or "-", each["name"][:40], each["run_dir"])
        rows.append((each["state"], step, loss, last, str(each["restarts"]), *map(shown, words)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for row, run_ in zip(rows, [None, *result["runs"]], strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]))
        if run_ is not None and run_["problem"]:
            lines.append(f"    {shown(run_['problem'].splitlines()[0])}")
    return lines
