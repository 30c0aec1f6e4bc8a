"""Keeps the size of a run's worker group, in Ray Train's controller: looks at the cluster, asks the decider, and writes
what was decided into the run directory."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardialign.cluster.environment.nodes import Asked, Node, cluster_nodes
from cardialign.cluster.runs.deciding import stacks
from cardialign.cluster.runs.deciding.decider import Decider, Rules
from cardialign.cluster.runs.deciding.hangs import Hangs, signs
from cardialign.cluster.runs.deciding.places import LOST_SECONDS, NODE_ID, Door, Doors, room
from cardialign.cluster.runs.diagnosis import AGAIN
from cardialign.cluster.tracking.spool import append_line
from cardialign.cluster.watching.decisions import Decision, starts_of
from cardialign.cluster.watching.state import spool_end
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import read_json, write_json
from cardialign.data_shards.rights import close_to_others
from cardialign.data_shards.shown import shown
from cardialign.pretrain.run.files import DEATHS, DECISIONS, FAILURE, METRICS, NEXT_GROUP, RESIZE, STOP, WORKERS

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""How often the cluster is looked at."""
FREED_SECONDS = 5.0
"""How long the places of a group that has ended may take to be free again."""
LONGEST_CAUSE = 400


@dataclass(frozen=True)
class KeeperSettings:
    """start: the driver's mark of its start. asked: what the workers ask for; its number says nothing here. local: on a
    Ray that the driver started, which ends with it and never grows."""

    run_dir: str
    start: str
    asked: Asked
    rules: Rules
    local: bool = False


_keepers: dict[str, Keeper] = {}


def keeper_of(settings: KeeperSettings) -> Keeper:
    """The one keeper of a start in this process: Ray hands the controller's parts over one by one.

    The process has the umask of its cluster; from here on it writes nothing that other users may read.
    """
    if settings.start not in _keepers:
        close_to_others()
        _keepers[settings.start] = Keeper(settings)
    return _keepers[settings.start]


def takes_leave(start: str) -> bool:
    """Whether the ranks of the group that ends can take leave of each other: not where one is lost or does not move,
    which the others would wait for."""
    return start not in _keepers or _keepers[start].whole


def entered(start: str, nodes: list[str]) -> None:
    """The ranks of a new worker group have entered the run, on these nodes."""
    if start in _keepers:
        _keepers[start].entered(nodes)


class Keeper:
    """What the controller's policies ask."""

    def __init__(self, settings: KeeperSettings) -> None:
        self.run_dir, self.start, self.asked = Path(settings.run_dir), settings.start, settings.asked
        self.elastic = settings.rules.sizes.elastic
        self.decider, self.doors = Decider(settings.rules), Doors()
        self.ours: Counter[str] = Counter()
        self.hangs = Hangs(settings.rules.hang_seconds, lambda: signs(self.run_dir))
        self._ranks: list[str] = []
        self.gone: frozenset[str] = frozenset()
        self._names: dict[str, str] = {}
        self._alive: frozenset[str] = frozenset()
        self._taken: set[str] = set()
        self._looked = float("-inf")
        self.whole = True

    def next_size(self) -> int:
        """How many workers the next group has; called while there is none."""
        self.ours.clear()
        there = self._room_of_ended()
        (self.run_dir / RESIZE).unlink(missing_ok=True)
        size, decision = self.decider.next_size(there, self._step())
        self._note(decision)
        told = {"start": self.start, "after": self.decider.attempt, "workers": size, "room": there}
        with contextlib.suppress(OSError):  # for the driver, which says what is waited for
            (self.run_dir / WORKERS).mkdir(exist_ok=True)
            write_json(self.run_dir / WORKERS / NEXT_GROUP, told, indent=1)
        return size

    def entered(self, nodes: list[str]) -> None:
        self.ours, self._ranks, self.whole = Counter(nodes), nodes, True
        self.hangs.begin()
        self.decider.started()
        self._look()

    def died(self, cause: str, *, taken: Collection[str] | None = None) -> bool:
        """The group died; True when the run ends with it. taken: nodes that the cluster takes back, as far as they are
        known; they count as gone, though they may answer for a while."""
        self._taken |= set(taken or ())
        if (self.run_dir / FAILURE).exists():
            return True  # an error that a restart cannot cure: the driver raises and notes it
        self._look()
        lost = self._lost(0.0)
        self.whole = not lost
        cause = self._told_by_survivors(cause)  # the group is there until this returns
        decision = self.decider.died(
            self._with_lost(cause, lost),
            node_lost=taken is not None or bool(lost),
            committed=self._committed(),
            step=self._step(),
        )
        self._note(decision)
        return decision is not None

    def running_size(self) -> int | None:
        """While a group trains: how many workers shall take its place now; None, as nearly always, when it goes on."""
        if time.monotonic() - self._looked < LOOK_SECONDS or (self.run_dir / STOP).exists():
            return None
        there = self._look()
        lost = self._lost(LOST_SECONDS)
        if lost:
            self.whole = False
            cause = self._with_lost(self._told_by_survivors(""), lost)
            if self.decider.died(cause, node_lost=True, committed=self._committed()) is not None:
                raise UserError(f"training failed: {cause}, and {self.decider.failures} worker groups have died", AGAIN)
            return self._instead(room(self.asked, there, self.ours, self.gone | lost))
        if self.hangs.look():
            return self._after_hang(there)
        if not self.elastic:
            return None
        found = room(self.asked, there, self.ours, self.gone)
        asked = read_json(self.run_dir / RESIZE)
        if asked is not None and isinstance(asked.get("step"), int):
            self.decider.stopped_to_grow()
            return self._instead(found)
        if asked is None and self.decider.may_grow(found):
            write_json(self.run_dir / RESIZE, {"workers": self.decider.rules.sizes.for_room(found)}, indent=1)
        return None

    def _after_hang(self, there: list[Node]) -> int:
        """The size of the group that takes the place of one whose ranks do not move, as after a death."""
        self.whole = False
        still = f"nothing has moved for {self.hangs.still_seconds:.0f} s"
        cause = shown(f"hang: {still}; {stacks.take(self.run_dir, self._ranks)}")[:LONGEST_CAUSE]
        cause = self._told_by_survivors(cause)[:LONGEST_CAUSE]
        with contextlib.suppress(OSError):
            told = {"time": time.time(), "cause": cause, "starts": starts_of(self.run_dir)}
            append_line(self.run_dir / DEATHS, told)
        if self.decider.died(cause, node_lost=False, committed=self._committed()) is not None:
            raise UserError(
                f"training failed: {cause}, and {self.decider.failures} worker groups have died",
                f"see the stacks; if the step named there only takes long, give --hang-minutes more; then {AGAIN}",
            )
        return self._instead(room(self.asked, there, self.ours, self.gone))

    def _instead(self, found: int) -> int:
        (self.run_dir / RESIZE).unlink(missing_ok=True)
        size, decision = self.decider.next_size(found, self._step())
        self._note(decision)
        return size

    def stop(self, cause: str) -> None:
        """The run ends of something that is tried no second time."""
        self._note(self.decider.stop(shown(cause)[:LONGEST_CAUSE], self._step()))

    def _look(self) -> list[Node]:
        """The nodes as they are now."""
        self._looked = time.monotonic()
        nodes = cluster_nodes()
        self._names |= {node.labels.get(NODE_ID, ""): node.name for node in nodes}
        doors = _doors()
        self.doors.look(doors)
        self.gone = (self.doors.silent() | self._taken) & frozenset(doors)
        self._alive = frozenset(doors)
        return nodes

    def _lost(self, seconds: float) -> frozenset[str]:
        """Nodes of our own that are gone, for Ray or for so long for us."""
        return frozenset(node for node in self.ours if node not in self._alive or node in self.doors.silent(seconds))

    def _room_of_ended(self) -> int:
        """Workers that find a place once what the last group held is free again."""
        deadline = time.monotonic() + FREED_SECONDS
        most = self.decider.rules.sizes.most
        while True:
            nodes = self._look()
            found = room(self.asked, nodes, without=self.gone)
            whole = room(self.asked, nodes, without=self.gone, free=False)
            if not self.elastic or found >= min(most, whole) or time.monotonic() > deadline:
                return found
            time.sleep(0.25)

    def _with_lost(self, cause: str, lost: frozenset[str]) -> str:
        told = [f"node {self._names.get(node, node)} is gone" for node in sorted(lost)]
        return shown("; ".join([*told, *([cause] if cause else [])]))[:LONGEST_CAUSE]

    def _told_by_survivors(self, cause: str) -> str:
        """`cause`, and what those that are left of the group have committed."""
        from cardialign.pretrain.training.checkpoints.survivors.word import ask_survivors

        return "; ".join(each for each in (ask_survivors(self.run_dir, self.start), cause) if each)

    def _step(self) -> int:
        return max((int(line["step"]) for line in spool_end(self.run_dir / METRICS)), default=0)

    def _committed(self) -> int:
        from cardialign.pretrain.training.checkpoints.files import committed

        return max((step for step, _ in committed(self.run_dir)), default=0)

    def _note(self, decision: Decision | None) -> None:
        note(self.run_dir, decision)


def note(run_dir: Path, decision: Decision | None) -> None:
    """Write a decision down for `status`, and for the driver, which tells it. A full disk keeps nobody from it."""
    if decision is None:
        return
    log.info("decision %s", decision.told())
    try:
        append_line(run_dir / DECISIONS, {**decision.to_dict(), "starts": starts_of(run_dir)})
    except OSError as error:
        log.warning("decision=not-written problem=%s", os.strerror(error.errno or 0))


def _doors() -> Mapping[str, Door]:
    """Where the raylet of each living node listens."""
    import ray

    found: dict[str, Door] = {}
    for node in ray.nodes():
        values: dict[str, Any] = node
        if values.get("Alive"):
            found[str(values["NodeID"])] = (str(values["NodeManagerAddress"]), int(values["NodeManagerPort"]))
    return found
