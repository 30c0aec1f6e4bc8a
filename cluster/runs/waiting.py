"""Whether a run goes on, and what it waits for when it does not: resources, a node, a rank, a step.

Standing still is a state with a message, a limit and a way out. The signs of life are files of the run directory:
who holds it, the workers' notes, the loss trace, and the checkpoint that is being written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cardialign.cluster.environment.nodes import Asked
from cardialign.cluster.environment.standstill import (
    FIRST_SECONDS,
    MISSING,
    Resources,
    Standstill,
    State,
    resources_state,
)
from cardialign.cluster.runs.deciding.hangs import signs
from cardialign.data_shards.files import read_json
from cardialign.pretrain.run.files import ATTEMPT, CHECKPOINTS, NEXT_GROUP, WORKERS

log = logging.getLogger(__name__)

SILENT_SECONDS = 25.0
"""After how long without a sign of life a rank counts as silent."""
ENDED_BY = "--wait-minutes; SIGTERM or Ctrl-C ends it now"


@dataclass
class Rank:
    """What the driver knows of one worker: its note, and when the note last changed (driver's clock)."""

    note: dict[str, Any]
    beat: float
    changed: float


@dataclass
class Watch:
    """Looked at by the driver again and again: `look` tells what is waited for, and ends a wait beyond its limit.

    wanted: resources of all workers, of the fewest with which the run starts. workers: of the largest group that it may
    have; once one has entered, what its notes say. resources: () -> (free, whole cluster). tell: gets each message.
    """

    run_dir: Path
    wanted: Mapping[str, float] | Asked
    workers: int
    limit_seconds: float
    resources: Resources
    tell: Callable[[str], None] = log.warning
    now: Callable[[], float] = time.monotonic
    ranks: dict[int, Rank] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._standstill = Standstill("the run", self.limit_seconds, ENDED_BY, self.tell, self.now)

    @property
    def still_seconds(self) -> float:
        """How long nothing has moved."""
        return self._standstill.seconds

    def waits_for(self) -> str | None:
        """What a run that has stood still for a while waits for."""
        return self.state()[0] if self.still_seconds > FIRST_SECONDS else None

    @property
    def entered(self) -> int:
        """Workers of the present group that have entered the run and give signs of life."""
        return len(self.ranks) - len(self.silent())

    @property
    def complete(self) -> bool:
        """Every worker has entered the run: the training has all that it asked for."""
        return self.entered == self.size

    @property
    def size(self) -> int:
        """Workers of the present group."""
        told = (seen.note.get("world_size") for seen in self.ranks.values())
        return next((size for size in told if isinstance(size, int) and 0 < size <= self.workers), self.workers)

    @property
    def writing_checkpoint(self) -> bool:
        return any(True for _ in (self.run_dir / CHECKPOINTS).glob(".tmp-*"))

    def silent(self) -> list[int]:
        return [rank for rank, seen in sorted(self.ranks.items()) if self.now() - seen.changed > SILENT_SECONDS]

    def look(self) -> None:
        """Raises UserError when the run has stood still for longer than its limit."""
        self._look_at_ranks()
        self._standstill.look(self._moving(), self.state)

    def state(self) -> State:
        """(what is waited for, the way out)."""
        silent = self.silent()
        again = "run the same command again: it goes on from the newest committed checkpoint"
        if not self.ranks or len(silent) == len(self.ranks):
            starts = self._starts()
            return (starts, f"look at the nodes (`ray status`), then {again}") if starts else self._resources()
        if silent:
            named = ", ".join(self._named(rank) for rank in silent)
            return f"{named}: no sign of life", f"look at that host, then {again}"
        missing = sorted(set(range(self.size)) - self.ranks.keys())
        if missing:
            return (
                f"rank {', '.join(map(str, missing))} to enter the run, {len(self.ranks)} of {self.size} are in it",
                f"look at the nodes (`ray status`), then {again}",
            )
        logs = self.run_dir / str(self.ranks[0].note.get("log", ""))
        return f"the next step; all {self.size} ranks live", f"see {logs.parent}, then {again}"

    def _resources(self) -> State:
        return resources_state(self.wanted, self.resources)

    def _starts(self) -> str | None:
        """What of a start takes its time where nothing is missing for it; None where resources are, or a node."""
        holder, asked = (read_json(self.run_dir / each) or {} for each in (ATTEMPT, f"{WORKERS}/{NEXT_GROUP}"))
        if not holder or (asked and asked.get("start") != holder.get("start")):
            return None
        if not asked and holder.get("group") == 0:
            if self._resources()[0].startswith(MISSING):
                return None
            return "the controller of the workers, whose process is starting and imports Ray Train and torch"
        workers, places = asked.get("workers"), asked.get("room")
        if asked.get("after") != holder.get("group") or not isinstance(workers, int) or not isinstance(places, int):
            return None
        started = f"{workers} workers, whose processes are starting and import torch; all have their places"
        return started if places >= workers else None

    def _named(self, rank: int) -> str:
        seen = self.ranks[rank]
        silence = self.now() - seen.changed
        return f"rank {rank} (process {seen.note.get('pid')} on {seen.note.get('host')}, silent for {silence:.0f} s)"

    def _look_at_ranks(self) -> None:
        holder = read_json(self.run_dir / ATTEMPT) or {}
        label = f"{str(holder.get('start', ''))[:8]}.{holder.get('group')}"
        for rank in range(self.workers):
            path = self.run_dir / WORKERS / f"rank-{rank}.json"
            try:
                beat = path.stat().st_mtime
            except OSError:
                self.ranks.pop(rank, None)
                continue
            known = self.ranks.get(rank)
            if known is not None and known.beat == beat and known.note.get("group") == label:
                continue
            note = read_json(path)
            if note is None or note.get("group") != label:
                self.ranks.pop(rank, None)
            else:
                self.ranks[rank] = Rank(note, beat, self.now())

    def _moving(self) -> Any:
        """What changes while the run goes on."""
        return [*((rank, seen.note.get("group")) for rank, seen in sorted(self.ranks.items())), *signs(self.run_dir)]
