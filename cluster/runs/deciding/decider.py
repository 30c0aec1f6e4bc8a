"""What becomes of a run whose worker group died, or whose cluster has room for another number of workers.

Facts in, decisions out: no Ray, no files, no clock but the one that is handed in. `keeper` feeds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cardialign.cluster.cli.options import GROW_MINUTES, HANG_MINUTES
from cardialign.cluster.environment.sizes import Sizes
from cardialign.cluster.watching.decisions import Decision, Kind

SETTLED_SECONDS = 5.0
"""How long there must have been room for a larger group: a node that has just come may have others waiting for it."""


@dataclass(frozen=True)
class Rules:
    """sizes: of the worker group. max_failures: groups that may die. grow_seconds: that a group lives at least.
    hang_seconds: that no rank of it may move."""

    sizes: Sizes
    max_failures: int = 3
    grow_seconds: float = 60 * GROW_MINUTES
    hang_seconds: float = 60 * HANG_MINUTES


class Decider:
    """Of one start of a run. `died`, `lost` and `next_size` follow the groups; `may_grow` is asked while one trains."""

    def __init__(self, rules: Rules, now: Callable[[], float] = time.monotonic) -> None:
        self.rules, self.now = rules, now
        self.workers, self.attempt, self.failures = 0, 0, 0
        self.begun = 0.0
        self._cause = ""
        self._planned = False
        self._lost_at: int | None = None
        self._roomy_since: float | None = None

    def next_size(self, room: int, step: int = 0) -> tuple[int, Decision | None]:
        """How many workers the next group has, and the decision in it; none in the first start of as many as there may
        be, nor in waiting on. room: workers that find a place now."""
        size = self.rules.sizes.for_room(room)
        before = self.workers or self.rules.sizes.most
        cause = self._cause
        if size != before:
            told = (
                f"room for {room} of up to {self.rules.sizes.most} workers"
                if room >= size
                else f"{size} are waited for"
            )
            cause = f"{cause}; {told}" if cause else told
        decision = self._decision("resize" if size != before else "retry", cause, size, step) if cause else None
        self.workers, self._cause, self._planned = size, "", False
        return size, decision

    def started(self) -> None:
        """A group of `workers` has entered the run."""
        self.attempt += 1
        self.begun, self._roomy_since = self.now(), None

    def died(self, cause: str, *, node_lost: bool, committed: int, step: int = 0) -> Decision | None:
        """The group died of `cause`: "stop" when too many have, else None, and `next_size` says how it goes on.

        node_lost: with a node of its cluster. That is no failure of the run, unless it commits nothing in between: a
        run that takes its nodes down must end. committed: step of the newest checkpoint.
        """
        if not (node_lost and self._has_moved(committed)):
            self.failures += 1
        if node_lost:
            self._lost_at = committed
        self._cause = cause
        if self.failures > self.rules.max_failures:
            return self._decision("stop", cause, 0, step)
        return None

    def did_not_start(self, cause: str) -> None:
        """The group could not start, which is tried again without a limit of its own."""
        self._cause = cause

    def stop(self, cause: str, step: int = 0) -> Decision:
        """The run ends of `cause`, which nothing here could cure."""
        return self._decision("stop", cause, 0, step)

    def may_grow(self, room: int) -> bool:
        """Whether the group that trains is to be ended, at a checkpoint, for a larger one."""
        if self.rules.sizes.for_room(room) <= self.workers:
            self._roomy_since = None
            return False
        if self._roomy_since is None:
            self._roomy_since = self.now()
        settled = self.now() - self._roomy_since >= SETTLED_SECONDS
        return settled and self.now() - self.begun >= self.rules.grow_seconds

    def stopped_to_grow(self) -> None:
        """The group has stopped at a checkpoint, as it was asked."""
        self._cause, self._planned = "a checkpoint was committed to go on with more workers", True

    def _has_moved(self, committed: int) -> bool:
        return committed > (self._lost_at if self._lost_at is not None else -1)

    def _decision(self, kind: Kind, cause: str, after: int, step: int) -> Decision:
        before = self.workers or self.rules.sizes.most
        counts = (self.attempt, self.failures, self.rules.max_failures)
        return Decision(kind, cause, before, after, *counts, step, self._planned)
