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

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_json
from cardialign.pretrain.run.files import ATTEMPT, CHECKPOINTS, METRICS, WORKERS

log = logging.getLogger(__name__)

FIRST_SECONDS, SILENT_SECONDS = 20.0, 25.0
"""After how long a run that stands still says so; and a rank counts as silent."""
RETELL = 2.0
"""Each message comes after so many times the wait of the one before."""
Resources = Callable[[], tuple[Mapping[str, float], Mapping[str, float]]]


@dataclass
class Rank:
    """What the driver knows of one worker: its note, and when the note last changed (driver's clock)."""

    note: dict[str, Any]
    beat: float
    changed: float


@dataclass
class Watch:
    """Looked at by the driver again and again: `look` tells what is waited for, and ends a wait beyond its limit.

    wanted: resources of all workers. resources: () -> (free, whole cluster). tell: gets each message.
    """

    run_dir: Path
    wanted: Mapping[str, float]
    workers: int
    limit_seconds: float
    resources: Resources
    tell: Callable[[str], None] = log.warning
    now: Callable[[], float] = time.monotonic
    ranks: dict[int, Rank] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._signs: Any = None
        self._since = self.now()
        self._next = FIRST_SECONDS
        self._group_before = read_json(self.run_dir / ATTEMPT)

    @property
    def still_seconds(self) -> float:
        """How long nothing has moved."""
        return self.now() - self._since

    @property
    def entered(self) -> int:
        """Workers of the present group that have entered the run and give signs of life."""
        return len(self.ranks) - len(self.silent())

    @property
    def writing_checkpoint(self) -> bool:
        return any(True for _ in (self.run_dir / CHECKPOINTS).glob(".tmp-*"))

    def silent(self) -> list[int]:
        return [rank for rank, seen in sorted(self.ranks.items()) if self.now() - seen.changed > SILENT_SECONDS]

    def look(self) -> None:
        """Raises UserError when the run has stood still for longer than its limit."""
        self._look_at_ranks()
        signs = self._moving()
        if signs != self._signs:
            if self._signs is not None and self._next > FIRST_SECONDS:
                self.tell(f"the run goes on after {self.still_seconds:.0f} s")
            self._signs, self._since, self._next = signs, self.now(), FIRST_SECONDS
            return
        still = self.still_seconds
        if still >= self.limit_seconds:
            waits, remedy = self.state()
            raise UserError(f"the run stood still for {still / 60:.3g} min, waiting for {waits}", remedy)
        if still >= self._next:
            self._next = still * RETELL
            self.tell(
                f"waiting for {self.state()[0]} ({still:.0f} s so far; the run ends at "
                f"{self.limit_seconds / 60:.3g} min, --wait-minutes; SIGTERM or Ctrl-C ends it now)"
            )

    def state(self) -> tuple[str, str]:
        """(what is waited for, the way out)."""
        silent = self.silent()
        if not self.ranks or len(silent) == len(self.ranks):
            return self._resources_state()
        again = "run the same command again: it goes on from the newest committed checkpoint"
        if silent:
            named = ", ".join(self._named(rank) for rank in silent)
            return f"{named}: no sign of life", f"look at that host, then {again}"
        missing = sorted(set(range(self.workers)) - self.ranks.keys())
        if missing:
            return (
                f"rank {', '.join(map(str, missing))} to enter the run, {len(self.ranks)} of {self.workers} are in it",
                f"look at the nodes (`ray status`), then {again}",
            )
        logs = self.run_dir / str(self.ranks[0].note.get("log", ""))
        return f"the next step; all {self.workers} ranks live", f"see {logs.parent}, then {again}"

    def _resources_state(self) -> tuple[str, str]:
        try:
            free, whole = self.resources()
        except Exception as error:  # whatever Ray raises when its head is gone
            return f"the Ray cluster, which does not answer ({error})", "look at its head node, then run again"
        short = {name: count for name, count in self.wanted.items() if whole.get(name, 0) < count}
        busy = {name: count for name, count in self.wanted.items() if free.get(name, 0) < count}
        words = "; ".join(
            f"{count:g} {name}s wanted, {free.get(name, 0):g} free of {whole.get(name, 0):g} in the cluster"
            for name, count in (short or busy or self.wanted).items()
        )
        if short:
            return f"a node: {words}", "add nodes, or start fewer workers (--workers)"
        if busy:
            return (
                f"resources: {words}",
                "wait for other jobs to end (`ray status`), or start fewer workers (--workers)",
            )
        return f"the workers to start: {words}", "look at the nodes (`ray status`), then run the same command again"

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
            if known is not None and known.beat == beat:
                continue
            note = read_json(path)
            if note is None or note.get("group") != label:
                self.ranks.pop(rank, None)
            else:
                self.ranks[rank] = Rank(note, beat, self.now())

    def _moving(self) -> Any:
        """What changes while the run goes on."""
        found: list[Any] = [(rank, seen.note.get("group")) for rank, seen in sorted(self.ranks.items())]
        writing = (path for path in (self.run_dir / CHECKPOINTS).glob(".tmp-*/**/*"))
        for path in (self.run_dir / METRICS, self.run_dir / CHECKPOINTS, *writing):
            try:
                status = path.stat()
            except OSError:
                continue
            found.append((path.name, status.st_size, status.st_ino, status.st_mtime_ns))
        return found
