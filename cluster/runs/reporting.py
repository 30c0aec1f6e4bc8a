"""How a run stands, from the files of its run directory; and the line by which its driver says so in a log.

Whoever sees only the log of a driver (the job of a cluster, behind its dashboard) reads the last such line:
`cardialign-state 1 {"step": ...}`. The number is the version of its form; a reader passes over other versions.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.lines import json_line
from cardialign.cluster.cli.streams import say
from cardialign.cluster.watching.state import run_state
from cardialign.data_shards.files import parse_json

WORD, VERSION = "cardialign-state", 1
JOB = "CARDIALIGN_JOB"
"""Environment variable of a driver that is a job of a cluster: the job's id."""
SECONDS, MOST_SECONDS, SHARE = 10.0, 60.0, 1 / 500
"""A line comes at most every 10 s; in a long run after a share of its time, at most 60 s: its log stays small."""
DECISIONS_TOLD = 5
ENDS = ("stopped", "finished", "failed")
"""States of a run that are phases, too."""
_LINE = re.compile(rf"^{WORD} {VERSION} (\{{.*\}})\s*$", re.MULTILINE)


def read_state(run_dir: Path, steps: int | None = None) -> dict[str, Any]:
    """How the run in `run_dir` stands, as `status` tells it; what the files do not tell is None. All of it is of
    `cardialign.cluster.watching.state.run_state`, which has what each word means.

    step, steps (`steps` where the caller knows them), loss, records_per_second, eta_seconds, mfu, last_checkpoint_step,
    checkpoint_age_seconds, last_step_age_seconds, data_wait, slowest_rank, slowest_shard, effective_negatives,
    effective_rank; restarts: "time" and "cause" of each; decisions: the last few of `decisions.jsonl`; phase:
    "running", "stopping", "stopped" (at a checkpoint), "finished" or "failed"; state: the same, told more closely;
    problem: why it failed; cause: why it is slow, as a word and a line with the shares of the time.
    """
    seen = run_state(run_dir, steps=steps)
    cause, last = seen.cause, seen.checkpoint
    same = ("steps", "loss", "records_per_second", "eta_seconds", "mfu", "data_wait", "slowest_rank", "slowest_shard",
            "effective_negatives", "effective_rank", "last_step_age_seconds", "state")  # fmt: skip
    return {
        "phase": seen.state if seen.state in ENDS else "stopping" if seen.stop_asked else "running",
        "step": None if seen.state == "empty" else seen.step,
        **{name: getattr(seen, name) for name in same},
        "last_checkpoint_step": last.step or None,
        "checkpoint_age_seconds": last.age_seconds if last.step else None,
        "restarts": [asdict(restart) for restart in seen.restarts],
        "decisions": [each.to_dict() for each in seen.decisions[-DECISIONS_TOLD:]],
        "problem": None if seen.failure is None else seen.failure["problem"],
        "cause": None if cause is None else {"word": cause.word, "line": cause.line, "shares": cause.shares},
    }


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
            values = parse_json(text)
        except ValueError:
            continue
        if isinstance(values, dict):
            return values
    return None


def without_states(log: str) -> str:
    """A log for readers: without its state lines."""
    return re.sub(rf"^{WORD} [0-9]+ .*\n?", "", log, flags=re.MULTILINE)
