"""What driver and workers leave for each other in a run directory: an error that ends the run, a request to stop."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_json, write_json
from cardialign.pretrain.run.files import FAILURE, RESULT, STOP, WORKERS


def write_failure(run_dir: Path, error: UserError, rank: int) -> None:
    """Record `error` so that the driver can raise the same one; the first rank to write wins."""
    values = {
        "type": f"{type(error).__module__}:{type(error).__qualname__}",
        "problem": error.problem,
        "remedy": error.remedy,
        "rank": rank,
    }
    own = run_dir / f".{FAILURE}.rank-{rank}"
    write_json(own, values, indent=1)
    try:
        os.link(own, run_dir / FAILURE)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(own, run_dir / FAILURE)
    finally:
        own.unlink(missing_ok=True)


def read_failure(run_dir: Path) -> UserError | None:
    """The error in `failure.json` with the class it had in the worker, None when there is none."""
    values = read_json(run_dir / FAILURE)
    if values is None:
        return None
    module, _, name = str(values["type"]).partition(":")
    kind: Any = UserError
    with contextlib.suppress(ImportError, AttributeError):  # the worker ran another version
        kind = getattr(importlib.import_module(module), name)
    problem, remedy = str(values["problem"]), str(values["remedy"])
    try:
        error = kind(problem, remedy)
    except TypeError:  # a subclass with a constructor of its own
        error = UserError(problem, remedy)
    return error if isinstance(error, UserError) else UserError(problem, remedy)


def request_stop(run_dir: Path, reason: str) -> None:
    """Ask every rank to stop at the next step boundary, with a committed checkpoint."""
    (run_dir / STOP).write_text(reason + "\n")


def clear_requests(run_dir: Path) -> None:
    """A new start of the run: what was asked of, or met by, the previous one no longer counts."""
    for name in (STOP, FAILURE, RESULT):
        (run_dir / name).unlink(missing_ok=True)
    for note in (run_dir / WORKERS).glob("rank-*.json"):
        note.unlink(missing_ok=True)
