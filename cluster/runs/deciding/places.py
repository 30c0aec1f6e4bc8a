"""Which nodes of a cluster are there: Ray counts a node that is gone for up to a minute more, a knock on its door does
not. And how many workers find a place on the rest."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from cardialign.cluster.environment.nodes import Asked, Node, places

NODE_ID = "ray.io/node-id"
"""Ray's label of a node that is its id."""
KNOCK_SECONDS = 2.0
LOST_SECONDS = 15.0
"""How long a node must give no answer before a group that shows no other sign is ended for it: a network that is cut
for some seconds comes back."""
Door = tuple[str, int]


def knock(door: Door, seconds: float = KNOCK_SECONDS) -> bool:
    """Whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection(door, timeout=seconds):
        return True
    return False


class Doors:
    """Which nodes answer. One that has never answered (a firewall) says nothing by its silence."""

    def __init__(self, knock: Callable[[Door], bool] = knock, now: Callable[[], float] = time.monotonic) -> None:
        self.knock, self.now = knock, now
        self._answered: set[str] = set()
        self._silent_since: dict[str, float] = {}

    def look(self, doors: Mapping[str, Door]) -> None:
        """Knock at all of them, at once."""
        if not doors:
            return
        with ThreadPoolExecutor(min(16, len(doors))) as pool:
            answers = dict(zip(doors, pool.map(self.knock, doors.values()), strict=True))
        for node, answers_now in answers.items():
            if answers_now:
                self._answered.add(node)
                self._silent_since.pop(node, None)
            elif node in self._answered:
                self._silent_since.setdefault(node, self.now())

    def silent(self, seconds: float = 0.0) -> frozenset[str]:
        """Nodes that have answered before, and for so long no more."""
        return frozenset(node for node, since in self._silent_since.items() if self.now() - since >= seconds)


def room(
    asked: Asked, nodes: Iterable[Node], ours: Mapping[str, int] | None = None,
    without: Iterable[str] = (), *, free: bool = True,
) -> int:  # fmt: skip
    """How many workers find a place on the nodes, `without` some. ours: node -> workers of our own on it, whose place
    is to be had again. free: of what other work leaves over."""
    counts = [
        places(asked, _with_ours(node, asked, (ours or {}).get(node.labels.get(NODE_ID, ""), 0)), free=free)
        for node in nodes
        if node.labels.get(NODE_ID) not in set(without)
    ]
    return max(counts, default=0) if asked.spread == "pack" else sum(counts)


def _with_ours(node: Node, asked: Asked, workers: int) -> Node:
    free = {name: node.free.get(name, 0.0) + workers * asked.each.get(name, 0.0) for name in {*node.free, *asked.each}}
    return Node(node.name, node.whole, free, node.labels)


def elsewhere(labels: Mapping[str, str] | None, without: Iterable[str]) -> dict[str, str] | None:
    """Labels that a node must have, and that it is none of those `without`; None for no such wish."""
    left_out = ",".join(sorted(without))
    return {**(labels or {}), NODE_ID: f"!in({left_out})"} if left_out else None
