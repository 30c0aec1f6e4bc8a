"""One worker group writes into a run directory: the newest holds it, an older one that still lives is fenced out.

A group can be given up (a partition, a long pause, SIGSTOP) and live on beside its successor. `attempt.json` names who
holds the run: a start (a driver, or a loop without one) and the worker group of that start. A successor replaces the
file first of all; whoever holds a run compares it before every write and raises `FencedOutError` when it names another.
The same file proves that a host sees the run directory: the mark is random, and `hold` waits until it can be read.

A process holds what it has taken, or has been handed by its rank 0, for each run directory; one that holds nothing
(a command that lists checkpoints) is not stopped.
"""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_json, write_json
from cardialign.pretrain.run.files import ATTEMPT

SETTLE_SECONDS = 0.05
"""What the predecessor had begun between its look and its write is over by then."""
SEEN_SECONDS = 15.0
"""How long a network file system may take to show one host what another has written."""


class FencedOutError(UserError):
    """This worker group has a successor: it has to end, and to leave the run directory alone."""


@dataclass(frozen=True)
class Mark:
    """Who holds a run: the random name of a start, and the number of its worker group (0: the driver itself)."""

    start: str
    group: int = 0

    @property
    def label(self) -> str:
        """Short and without spaces, for names of files that no other group may use."""
        return f"{self.start[:8]}.{self.group}"


_held: dict[Path, Mark] = {}


def _key(run_dir: Path) -> Path:
    return Path(os.path.abspath(run_dir))


def held(run_dir: Path) -> Mark | None:
    """What this process holds of `run_dir`."""
    return _held.get(_key(run_dir))


def new_mark() -> Mark:
    """The mark of a start that holds nothing yet."""
    return Mark(secrets.token_hex(16))


def take_start(run_dir: Path, mark: Mark | None = None) -> Mark:
    """Take over `run_dir` as a new start, from whoever holds it. Called by one process."""
    return _take(run_dir, mark or new_mark())


def take_group(run_dir: Path, mark: Mark, *, seconds: float = SEEN_SECONDS) -> Mark:
    """Take over `run_dir` as a worker group of the start that holds it. Called by one process.

    Raises FencedOutError when a younger group of that start holds it, UserError as `hold` does.
    """
    newest = _seen(run_dir, lambda newest: newest.start == mark.start, seconds)
    if newest.group > mark.group:
        raise _fenced(run_dir)
    return mark if newest == mark else _take(run_dir, mark)


def of_this_process(run_dir: Path) -> Mark:
    """What this process holds of `run_dir`, else a start of its own: how a loop without a driver begins."""
    mark = held(run_dir)
    return take_start(run_dir) if mark is None or mark.group == 0 else mark


def _take(run_dir: Path, mark: Mark) -> Mark:
    before = read_json(run_dir / ATTEMPT)
    run_dir.mkdir(parents=True, exist_ok=True)
    told = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_json(run_dir / ATTEMPT, {**asdict(mark), **told}, indent=1)
    _held[_key(run_dir)] = mark
    if before is not None:
        time.sleep(SETTLE_SECONDS)
    return mark


def hold(run_dir: Path, mark: Mark, *, seconds: float = SEEN_SECONDS) -> None:
    """Hold `run_dir` under a mark that rank 0 (or the driver) has taken; called by every process of a group.

    Raises UserError naming host and folder when the mark cannot be read here within `seconds`: this host does not see
    the run directory, or sees another one under the same name.
    """
    newest = _seen(run_dir, lambda newest: newest.start == mark.start and newest.group >= mark.group, seconds)
    if newest != mark:
        raise _fenced(run_dir)
    _held[_key(run_dir)] = mark


def hold_start(run_dir: Path, mark: Mark, *, seconds: float = SEEN_SECONDS) -> None:
    """Hold `run_dir` beside the worker groups of a start, under the start's own mark: fenced out with all of them.

    Raises UserError as `hold` does.
    """
    _seen(run_dir, lambda newest: newest.start == mark.start, seconds)
    _held[_key(run_dir)] = Mark(mark.start)


def _seen(run_dir: Path, fits: Callable[[Mark], bool], seconds: float) -> Mark:
    """What `attempt.json` says once it `fits`. Raises UserError when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        newest = holder(run_dir)
        if newest is not None and fits(newest):
            return newest
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if newest is not None:
        found = "the folder of that name there belongs to another start of a run"
    else:
        found = "a folder of that name there is not this one" if run_dir.is_dir() else "there is no such folder there"
    raise UserError(
        f"host {platform.node()} does not see the run directory {run_dir} of this run: {found}",
        "give a --run-dir on storage that every node mounts at the same path",
    )


def check(run_dir: Path) -> None:
    """Raise FencedOutError when this process held `run_dir` and another start, or a younger group, holds it now."""
    mark = held(run_dir)
    if mark is None:
        return
    newest = holder(run_dir)
    if newest is None or newest.start != mark.start or (mark.group and newest.group != mark.group):
        raise _fenced(run_dir)


def fenced_out(run_dir: Path) -> bool:
    """Whether `check` would raise."""
    try:
        check(run_dir)
    except FencedOutError:
        return True
    return False


def label(run_dir: Path) -> str:
    """The label of what this process holds of `run_dir` and a dash; "" when it holds nothing."""
    mark = held(run_dir)
    return "" if mark is None else f"{mark.label}-"


def holder(run_dir: Path) -> Mark | None:
    """Who holds the run now: what `attempt.json` says. A look that falls between two states of a network file system is
    repeated."""
    values: dict[str, Any] | None = None
    for wait in (0.0, 0.05, 0.2):
        time.sleep(wait)
        values = read_json(run_dir / ATTEMPT)
        if values is not None:
            break
    try:
        return None if values is None else Mark(str(values["start"]), int(values["group"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _fenced(run_dir: Path) -> FencedOutError:
    values = read_json(run_dir / ATTEMPT)
    if values is None:
        return FencedOutError(
            f"the run directory {run_dir} no longer holds {ATTEMPT}: it was removed or replaced under this run",
            "run the same command again",
        )
    return FencedOutError(
        f"another start of this run has taken over {run_dir} (process {values.get('pid')} on {values.get('host')}, "
        f"since {values.get('since')}); this one was given up and has ended without writing anything more",
        "nothing is to be done: the other one goes on",
    )
