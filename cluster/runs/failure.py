"""What driver and workers leave for each other in a run directory: an error that ends the run, a request to stop.

A failure file is data: its kind is a word of a fixed table, and whatever else it says is shown as text.
"""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import STOPPED, UserError
from cardialign.data_shards.files import read_json, write_json
from cardialign.data_shards.shown import shown
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import FAILURE, NEXT_GROUP, RESIZE, RESULT, STOP, SURVIVORS, WORKERS

KINDS = {
    "UserError": "cardialign.data_shards.errors",
    "UsageError": "cardialign.data_shards.errors",
    "DataError": "cardialign.data_shards.errors",
    "StorageError": "cardialign.data_shards.errors",
    "MissingPackageError": "cardialign.data_shards.extras",
    "NoTextBankError": "cardialign.data_shards.text.bank",
    "OtherBankVersionError": "cardialign.data_shards.shard_set.bank_description",
    "HeldError": "cardialign.pretrain.run.lock",
    "RunDirectoryError": "cardialign.pretrain.run.layout",
    "CheckpointError": "cardialign.pretrain.training.checkpoints.files",
    "NewerCheckpointError": "cardialign.pretrain.training.checkpoints.files",
    "CollapseError": "cardialign.pretrain.training.alarms",
    "FencedOutError": "cardialign.pretrain.run.fence",
    "StoppedError": "cardialign.cluster.runs.failure",
    "NotLearnt": "cardialign.cluster.studies.outcome",
}
"""Kind of error that a failure file may name -> the module of its class."""
LONGEST = 20_000
"""Characters of a failure's text that are read."""


class StoppedError(UserError):
    """The run was asked to stop and ended without reaching a checkpoint: the same command continues."""

    exit_code = STOPPED


def write_failure(run_dir: Path, error: UserError, rank: int) -> None:
    """Record `error`, without secrets, so that the driver can raise the same one; the first rank to write wins.

    A group that has been given up writes nothing: its failure is not that of its successor.
    """
    if fence.fenced_out(run_dir):
        return
    values = {
        "type": type(error).__name__,
        "problem": shown(error.problem, lines=True),
        "remedy": shown(error.remedy, lines=True),
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
    """The error in `failure.json` with the class it had in the worker, None when there is none.

    A kind that is not in `KINDS` (another version wrote it, or somebody else) is a plain UserError.
    """
    values = read_json(run_dir / FAILURE)
    return None if values is None else error_of(values)


def error_of(values: dict[str, Any]) -> UserError:
    """What `write_failure` wrote, as an error."""
    problem, remedy = (shown(str(values.get(key, ""))[:LONGEST], lines=True) for key in ("problem", "remedy"))
    name = str(values.get("type", "")).rpartition(":")[2]
    if name not in KINDS:
        return UserError(problem or "a worker failed without saying why", remedy)
    kind: type[UserError] = getattr(importlib.import_module(KINDS[name]), name)
    return kind(problem, remedy)


def request_stop(run_dir: Path, reason: str) -> None:
    """Ask every rank to stop at the next step boundary, with a committed checkpoint."""
    (run_dir / STOP).write_text(reason + "\n")


def clear_requests(run_dir: Path) -> None:
    """A new start of the run: what was asked of, or met by, the previous one no longer counts."""
    for name in (STOP, RESIZE, FAILURE, RESULT):
        (run_dir / name).unlink(missing_ok=True)
    for note in (*(run_dir / WORKERS).glob("rank-*"), run_dir / WORKERS / NEXT_GROUP):
        note.unlink(missing_ok=True)
    shutil.rmtree(run_dir / SURVIVORS, ignore_errors=True)
