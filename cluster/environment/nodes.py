"""What work asks of a cluster, what the nodes of the cluster have, and in one sentence what is missing between the two.

All workers of a run ask for the same, so the count of places on a node is a division, and exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KIND = "accelerator_type:"
"""Ray's resource of a node that says what its GPUs are."""
UNNAMED = ("memory", "object_store_memory")
MOST_NAMED = 8
"""Nodes that a sentence names."""


@dataclass(frozen=True)
class Asked:
    """each: resources of one worker. kind: of its GPU. labels: of its node. spread: "strict": a node for each worker;
    "pack": one node for all. plain: any node will do, and sums say enough."""

    workers: int
    each: Mapping[str, float]
    kind: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    spread: str = "default"
    plain: bool = True

    @property
    def together(self) -> dict[str, float]:
        return {name: self.workers * amount for name, amount in self.each.items()}

    def told(self) -> str:
        """`4 workers with 1 H100 and 8 CPUs each, each on a node of its own, with zone=a`."""
        where = {"strict": ", each on a node of its own", "pack": ", all on one node"}.get(self.spread, "")
        where = where if self.workers > 1 else ""
        labels = "".join(f", on nodes with {key}={value}" for key, value in self.labels.items())
        each = " each" if self.workers > 1 else ""
        return f"{_count(self.workers, 'worker')} with {_amounts(self.each, self.kind)}{each}{where}{labels}"


@dataclass(frozen=True)
class Node:
    """One node: all that it has, and what of it is free."""

    name: str
    whole: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str | None:
        named = (name.removeprefix(KIND) for name in self.whole if name.startswith(KIND))
        return next(named, self.labels.get("ray.io/accelerator-type"))

    def told(self) -> str:
        return f"{_amounts(self.whole, self.kind)} on {self.name}"


def places(asked: Asked, node: Node, *, free: bool = False) -> int:
    """How many workers fit on a node."""
    has = node.free if free else node.whole
    if not _of_kind(asked, node):
        return 0
    if any(node.labels.get(key) != value for key, value in asked.labels.items()):
        return 0
    fits = min((int((has.get(name, 0.0) + 1e-6) / amount) for name, amount in asked.each.items()), default=0)
    return min(fits, 1) if asked.spread == "strict" else fits


def shortage(asked: Asked, nodes: Sequence[Node], *, free: bool = False) -> str | None:
    """What is missing, as a sentence of what was asked and what is there; None when all workers find a place.

    free: of what other work leaves over.
    """
    counts = [places(asked, node, free=free) for node in nodes]
    found = max(counts, default=0) if asked.spread == "pack" else sum(counts)
    if found >= asked.workers:
        return None
    there = "; ".join(node.told() for node in nodes[:MOST_NAMED]) or "no node"
    more = f"; and {len(nodes) - MOST_NAMED} more nodes" if len(nodes) > MOST_NAMED else ""
    left = "free for" if free else "room for"
    return f"asked: {asked.told()}; there: {there}{more}; {left} {found} of {asked.workers}{_why(asked, nodes)}"


def _why(asked: Asked, nodes: Sequence[Node]) -> str:
    """The first reason that rules out nodes, where one rules out all of them."""
    if not any(_of_kind(asked, node) for node in nodes):
        kinds = sorted({node.kind for node in nodes if node.kind})
        return f"; no node has a {asked.kind}" + (f", there are {', '.join(kinds)}" if kinds else "")
    for key, value in asked.labels.items():
        if not any(node.labels.get(key) == value for node in nodes):
            seen = sorted({node.labels[key] for node in nodes if key in node.labels})
            return f"; no node has {key}={value}" + (f", only {', '.join(seen)}" if seen else "")
    for name, amount in asked.each.items():
        if not any(node.whole.get(name, 0.0) >= amount for node in nodes):
            return f"; no node has {_amount(name, amount, None)}"
    return ""


def _of_kind(asked: Asked, node: Node) -> bool:
    return asked.kind is None or f"{KIND}{asked.kind}" in node.whole


def cluster_nodes() -> list[Node]:
    """The living nodes of the Ray that this process has joined, by name."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    nodes = [
        Node(
            str(node.get("NodeName") or node.get("NodeManagerHostname") or node["NodeID"]),
            dict(node.get("Resources") or {}),
            dict(free.get(node["NodeID"]) or {}),
            dict(node.get("Labels") or {}),
        )
        for node in ray.nodes()
        if node.get("Alive")
    ]
    return sorted(nodes, key=lambda node: node.name)


def _amounts(resources: Mapping[str, float], kind: str | None) -> str:
    """`1 H100 and 8 CPUs`: GPUs first, then CPUs, then what a site has named itself."""
    shown: dict[str, Any] = {name: resources[name] for name in ("GPU", "CPU") if resources.get(name)}
    shown |= {
        name: amount
        for name, amount in sorted(resources.items())
        if name not in ("GPU", "CPU", *UNNAMED) and not name.startswith(("node:", KIND))
    }
    words = [_amount(name, amount, kind) for name, amount in shown.items()]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) or "nothing"


def _amount(name: str, amount: float, kind: str | None) -> str:
    if name == "GPU" and kind is not None:
        return f"{amount:g} {kind}"
    return _count(amount, name) if name in ("GPU", "CPU") else f"{amount:g} {name}"


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"
