"""Standing still as a state of work on Ray: it has a message, a limit, and a way out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cardialign.cluster.environment.nodes import Asked, Node, cluster_nodes, shortage
from cardialign.data_shards.errors import UserError

log = logging.getLogger(__name__)

FIRST_SECONDS = 20.0
"""After how long work that stands still says so."""
RETELL = 2.0
"""Each message comes after so many times the wait of the one before."""
MISSING = ("a node: ", "nodes: ", "the Ray cluster, ")
"""How the state begins in which a cluster has not what is wanted, whatever is free of it."""
State = tuple[str, str]
"""(what is waited for, the way out)"""
Resources = Callable[[], tuple[Mapping[str, float], Mapping[str, float]]]
"""() -> (free, whole cluster)"""


@dataclass
class Standstill:
    """Tells what `work` waits for when its signs have not changed for a while, and ends a wait beyond its limit.

    ended_by: words that end the wait, for the message. tell: gets each message.
    """

    work: str
    limit_seconds: float
    ended_by: str = "Ctrl-C ends it now"
    tell: Callable[[str], None] = log.warning
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._signs: Any = None
        self._since = self.now()
        self._next = FIRST_SECONDS

    @property
    def seconds(self) -> float:
        """How long nothing has changed."""
        return self.now() - self._since

    def look(self, signs: Any, state: Callable[[], State]) -> None:
        """signs: whatever changes while the work goes on. Raises UserError beyond the limit."""
        if signs != self._signs:
            if self._signs is not None and self._next > FIRST_SECONDS:
                self.tell(f"{self.work} goes on after {self.seconds:.0f} s")
            self._signs, self._since, self._next = signs, self.now(), FIRST_SECONDS
            return
        still = self.seconds
        if still >= self.limit_seconds:
            waits, remedy = state()
            raise UserError(f"{self.work} stood still for {still / 60:.3g} min, waiting for {waits}", remedy)
        if still >= self._next:
            self._next = still * RETELL
            self.tell(
                f"{self.work} is waiting for {state()[0]} ({still:.0f} s so far, it ends after "
                f"{self.limit_seconds / 60:.3g} min; {self.ended_by})"
            )


def resources_state(wanted: Mapping[str, float] | Asked, resources: Resources) -> State:
    """What work waits for that has no process yet: a node, resources that others have, or its own start."""
    asked = wanted if isinstance(wanted, Asked) else Asked(1, dict(wanted))
    try:
        nodes = [] if asked.plain else cluster_nodes()
        free, whole = resources()
    except Exception as error:  # whatever Ray raises when its head is gone
        return f"the Ray cluster, which does not answer ({error})", "look at its head node, then run again"
    return nodes_state(asked, nodes) or sums_state(asked.together, free, whole)


def nodes_state(asked: Asked, nodes: Sequence[Node]) -> State | None:
    """What is missing for work that not every node can do; None when it has a place, or any node will do."""
    if asked.plain:
        return None
    if (missing := shortage(asked, nodes)) is not None:
        return f"nodes: {missing}", "add such nodes, ask for less, or start fewer workers (--workers)"
    if (taken := shortage(asked, nodes, free=True)) is not None:
        return (
            f"resources that other work holds: {taken}, or for the workers that hold them to start",
            "wait for other jobs to end (`ray status`), or start fewer workers (--workers)",
        )
    return None


def sums_state(wanted: Mapping[str, float], free: Mapping[str, float], whole: Mapping[str, float]) -> State:
    """The same by the sums over all nodes."""
    short = {name: count for name, count in wanted.items() if whole.get(name, 0) < count}
    busy = {name: count for name, count in wanted.items() if free.get(name, 0) < count}
    words = "; ".join(
        f"{count:g} {name}{'' if count == 1 else 's'} wanted, {free.get(name, 0):g} free of {whole.get(name, 0):g} "
        "in the cluster"
        for name, count in (short or busy or wanted).items()
    )
    fewer = "or start fewer workers (--workers)"
    if short:
        return f"a node: {words}", f"add nodes, {fewer}"
    if busy:
        words += ", or for the workers that hold them to start"
        return f"resources: {words}", f"wait for other jobs to end (`ray status`), {fewer}"
    return f"workers to start: {words}", "look at the nodes (`ray status`), then run the same command again"


def ray_resources() -> tuple[Mapping[str, float], Mapping[str, float]]:
    """(free, whole cluster) of the Ray that this process has joined."""
    import ray

    return ray.available_resources(), ray.cluster_resources()
