"""Who took a run, when, by which command, with which code and on which machine: one line each in `starts.jsonl`."""

from __future__ import annotations

import getpass
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from cardialign.cluster.environment.versions import CHANGED, git_commit, versions
from cardialign.cluster.tracking.spool import append_line
from cardialign.cluster.watching.state import last_lines
from cardialign.data_shards.shown import without_secrets
from cardialign.pretrain.run.files import STARTS

LONGEST_LINE = 80
LATEST = 253402300799
"""The last second of the year 9999: no file was written later."""


@dataclass(frozen=True)
class Start:
    """One start of a run. time: Unix time; command: as it was given, without secrets ("" from a program); commit: ""
    where none is known; workers: as asked for ("2", "2-8"); user and host: where the driver ran."""

    time: float
    command: str = ""
    version: str = ""
    commit: str = ""
    python: str = ""
    torch: str = ""
    user: str = ""
    host: str = ""
    machine: str = ""
    workers: str = ""


def given_command() -> str:
    """The words of this process as a shell would take them, without what is secret in its addresses."""
    return command_line(["cardialign", *sys.argv[1:]])


def command_line(words: Sequence[str]) -> str:
    return without_secrets(shlex.join(words))


def user_name() -> str:
    """Who runs this process; "" where the system has no name, as in some containers."""
    with suppress(OSError, KeyError):
        return getpass.getuser()
    return ""


def mlflow_tags(command: str, commit: str) -> dict[str, str]:
    """What MLflow shows as source, user, commit and description of a run; without what is not known.

    The source is the command without its options: MLflow shows of a source what stands behind its last `/`. The
    description has all of it, an option a line: a long line is cut at the edge of the page.
    """
    told = {
        "mlflow.source.name": command.partition(" -")[0],
        "mlflow.source.type": "LOCAL" if command else "",
        "mlflow.source.git.commit": "" if commit.endswith(CHANGED) else commit,  # it would name other code
        "mlflow.user": user_name(),
        "mlflow.note.content": f"```\n{_in_lines(command)}\n```" if command else "",
    }
    return {name: value for name, value in told.items() if value}


def _in_lines(command: str) -> str:
    """The command for a shell, in lines where it is long: each option begins one."""
    if len(command) <= LONGEST_LINE:
        return command
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    options = [place for place, word in enumerate(words) if word.startswith("-")] or [len(words)]
    lines = [shlex.join(words[first:last]) for first, last in pairwise([0, *options, len(words)]) if first < last]
    return " \\\n  ".join(lines)


def note_start(run_dir: Path, command: str, workers: str) -> None:
    """Add a line about this start. Raises OSError when the run directory cannot be written."""
    import torch

    from cardialign.kernels.benchmarks.table import device_name

    known = versions()
    start = Start(
        time=time.time(),
        command=command,
        version=known.get("cardialign", ""),
        commit=git_commit(),
        python=platform.python_version(),
        torch=known.get("torch", ""),
        user=user_name(),
        host=platform.node(),
        machine=device_name(torch.device("cpu")),
        workers=workers,
    )
    append_line(run_dir / STARTS, asdict(start))


def read_starts(run_dir: Path) -> list[Start]:
    """The newest starts of a run, oldest first; lines that are not of this form are left out."""
    found = []
    for values in last_lines(run_dir / STARTS):
        when = values.get("time")
        if isinstance(when, int | float) and not isinstance(when, bool) and 0 <= when <= LATEST:
            words = {name: values.get(name) for name in Start.__dataclass_fields__ if name != "time"}
            found.append(Start(float(when), **{name: word for name, word in words.items() if isinstance(word, str)}))
    return found
