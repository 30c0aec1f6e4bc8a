"""Starting over in a run directory that holds a run: what is there is moved aside, nothing is deleted."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from cardialign.data_shards.files import sync, write_json
from cardialign.pretrain.run.files import (
    ATTEMPTS,
    BAD_STEPS,
    BEST,
    BEST_NOTE,
    CHECKPOINTS,
    COMPUTE,
    CONFIG,
    DEATHS,
    DECISIONS,
    EARLIER,
    EVALUATIONS,
    EXPORT,
    EXPOSURE_SALT,
    FIGURES,
    FIRST_COMMIT,
    INITIALISED,
    MEMORY,
    METRICS,
    PAGE,
    QUARANTINE,
    RESULT,
    STARTED_OVER,
    STARTS,
    SYSTEM,
    TRACKING,
)

MOVED = (
    RESULT, MEMORY, COMPUTE, TRACKING, ATTEMPTS, DEATHS, DECISIONS, METRICS, SYSTEM, EVALUATIONS, FIGURES, QUARANTINE,
    PAGE, STARTS, INITIALISED, BAD_STEPS, BEST_NOTE, BEST, EXPORT, EXPOSURE_SALT, CONFIG, FIRST_COMMIT, CHECKPOINTS,
)  # fmt: skip
"""What belongs to one run; its checkpoints last, so that a start that is cut short still finds them."""


def move_aside(run_dir: Path) -> Path | None:
    """Move the run that `run_dir` holds to `earlier/N/` and note that another one begins; returns that folder.

    None when there was no run. What the run starts from (`start/`) stays. Raises OSError when something cannot be
    moved, such as a folder that is a mount of its own: then all of it is where it was.
    """
    there = [name for name in MOVED if os.path.lexists(run_dir / name)]
    target = None
    if there:
        number = 1
        while os.path.lexists(run_dir / EARLIER / str(number)):
            number += 1
        target = run_dir / EARLIER / str(number)
        target.mkdir(parents=True)
        _move(there, run_dir, target)
        sync(target)
    else:
        run_dir.mkdir(parents=True, exist_ok=True)
    note = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "moved_to": None if target is None else str(target.relative_to(run_dir)),
    }
    write_json(run_dir / STARTED_OVER, note, indent=1)
    return target


def _move(names: list[str], source: Path, target: Path) -> None:
    moved: list[str] = []
    try:
        for name in names:
            (source / name).rename(target / name)
            moved.append(name)
    except OSError:
        for name in reversed(moved):
            (target / name).rename(source / name)
        target.rmdir()
        raise
