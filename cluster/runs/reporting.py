"""How a run stands, from the files of its run directory; and the line by which its driver says so in a log.

Whoever sees only the log of a driver (the job of a cluster, behind its dashboard) reads the last such line:
`cardialign-state 1 {"step": ...}`. The number is the version of its form; a reader passes over other versions.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.lines import json_line
from cardialign.cluster.cli.streams import say
from cardialign.cluster.watching.state import run_state
from cardialign.data_shards.files import read_json
from cardialign.pretrain.run.files import CONFIG, FAILURE, LOGS, METRICS, RESULT, STOP
from cardialign.pretrain.training.checkpoints.files import MANIFEST, committed

WORD, VERSION = "cardialign-state", 1
JOB = "CARDIALIGN_JOB"
"""Environment variable of a driver that is a job of a cluster: the job's id."""
SECONDS, MOST_SECONDS, SHARE = 10.0, 60.0, 1 / 500
"""A line comes at most every 10 s; in a long run after a share of its time, at most 60 s: its log stays small."""
TAIL = 256 * 1024
_LINE = re.compile(rf"^{WORD} {VERSION} (\{{.*\}})\s*$", re.MULTILINE)
_GROUP = re.compile(r"(?P<when>[0-9]{8}-[0-9]{6})-(?P<group>[0-9]+)")


def read_state(run_dir: Path, steps: int | None = None) -> dict[str, Any]:
    """How the run in `run_dir` stands; what the files do not tell is None.

    step, steps (`steps` where the caller knows them), loss, records_per_second, eta_seconds, last_checkpoint_step,
    checkpoint_age_seconds; restarts: {"time", "cause"} of every start of the workers but the first; phase: "running",
    "stopping", "stopped" (at a checkpoint), "finished" or "failed"; problem: why it failed. cause: why it is slow, in a
    line and a word with the shares of the time; data_wait, slowest_rank, slowest_shard, effective_negatives,
    effective_rank: see `cardialign.cluster.watching.state.RunState`.
    """
    config, result = read_json(run_dir / CONFIG) or {}, read_json(run_dir / RESULT)
    training = config.get("training")
    training = training if isinstance(training, dict) else {}
    trace = _last_values(run_dir / METRICS, ("step", "loss", "records_per_second"))
    step = trace.get("step", 0 if config else None)
    steps = steps or (result or {}).get("total_steps") or training.get("steps")
    rate, batch = trace.get("records_per_second"), training.get("global_batch")
    known = all(isinstance(value, int | float) for value in (step, steps, rate, batch)) and bool(rate)
    last, age = _last_checkpoint(run_dir)
    return {
        "phase": _phase(run_dir, result),
        "step": step,
        "steps": steps,
        "loss": trace.get("loss"),
        "records_per_second": rate,
        "eta_seconds": max(0.0, (steps - step) * batch / rate) if known else None,  # type: ignore[operator]
        "last_checkpoint_step": last,
        "checkpoint_age_seconds": age,
        "restarts": _restarts(run_dir),
        "problem": (read_json(run_dir / FAILURE) or {}).get("problem"),
        **_watched(run_dir),
    }


def _watched(run_dir: Path) -> dict[str, Any]:
    """What the notes of the ranks say."""
    seen = run_state(run_dir)
    shown = ("data_wait", "slowest_rank", "slowest_shard", "effective_negatives", "effective_rank")
    cause = (
        None if seen.cause is None else {"word": seen.cause.word, "line": seen.cause.line, "shares": seen.cause.shares}
    )
    return {"cause": cause, **{name: getattr(seen, name) for name in shown}}


def _phase(run_dir: Path, result: dict[str, Any] | None) -> str:
    if result is not None:
        return "stopped" if result.get("stopped") else "finished"
    if (run_dir / FAILURE).exists():
        return "failed"
    return "stopping" if (run_dir / STOP).exists() else "running"


def _last_values(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """The newest value of each key in the last lines of a file of JSON lines."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return {}
    found: dict[str, Any] = {}
    for line in reversed(lines):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            found = {**{key: values[key] for key in keys if values.get(key) is not None}, **found}
        if len(found) == len(keys):
            break
    return found


def _last_checkpoint(run_dir: Path) -> tuple[int | None, float | None]:
    """(step, age in seconds) of the newest committed checkpoint."""
    found = committed(run_dir)
    if not found:
        return None, None
    step, path = max(found)
    try:
        return step, max(0.0, time.time() - (path / MANIFEST).stat().st_mtime)
    except OSError:
        return step, None


def _restarts(run_dir: Path) -> list[dict[str, str]]:
    """From the names of the logs' folders: each start of the driver numbers its worker groups from 1."""
    groups = sorted(
        (found["when"], int(found["group"]))
        for path in (run_dir / LOGS).glob("*")
        if (found := _GROUP.fullmatch(path.name))
    )
    return [
        {"time": when, "cause": "its workers were lost" if group > 1 else "the command was given again"}
        for when, group in groups[1:]
    ]


class StateLines:
    """Says how a run stands in the log of a job, now and then; says nothing in a driver that is no job.

    look: called often. waits: gives what the run waits for, asked for only when a line is due.
    """

    def __init__(self, run_dir: Path, steps: int | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.run_dir, self.steps, self.now = run_dir, steps, now
        self.job = os.environ.get(JOB, "")
        self._began = now()
        self._next = self._began
        self._stopping = False

    def look(self, stopping: bool = False, waits: Callable[[], str | None] | None = None) -> None:
        """A line when one is due, and at once when a stop is asked for."""
        if not self.job or (self.now() < self._next and stopping == self._stopping):
            return
        self._stopping = stopping
        self._next = self.now() + min(MOST_SECONDS, max(SECONDS, SHARE * (self.now() - self._began)))
        self.tell(waits_for=None if waits is None else waits())

    def tell(self, **more: Any) -> None:
        """A line now, with `more` in it."""
        if not self.job:
            return
        here = {"pid": os.getpid(), "host": platform.node(), "run_dir": str(self.run_dir), "time": time.time()}
        say([f"{WORD} {VERSION} {json_line({**read_state(self.run_dir, self.steps), **here, **more})}"])


def last_state(log: str) -> dict[str, Any] | None:
    """What the last state line of a log says, None without one."""
    for text in reversed(_LINE.findall(log)):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            continue
        return dict(values)
    return None


def without_states(log: str) -> str:
    """A log for readers: without its state lines."""
    return re.sub(rf"^{WORD} [0-9]+ .*\n?", "", log, flags=re.MULTILINE)
