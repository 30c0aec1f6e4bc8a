"""What is missing on a cluster is said exactly: what was asked, what is there, and how many workers found a place."""

from __future__ import annotations

import pytest

from cardialign.cluster.environment.nodes import Asked, Node, places, shortage
from cardialign.cluster.environment.standstill import nodes_state


def node(name: str, gpus: int = 0, kind: str = "", cpus: float = 0, used: float = 0, **labels: str) -> Node:
    marks = {f"accelerator_type:{kind}": 1.0} if kind else {}
    whole = {"CPU": cpus, "GPU": float(gpus), "memory": 1e9, f"node:{name}": 1.0, **marks}
    return Node(name, whole, {**whole, "GPU": gpus - used, "CPU": cpus - used}, labels)


A, B = node("a", 2, "H100", 16), node("b", 4, "A100", 32)
ONE = {"CPU": 8.0, "GPU": 1.0}


def test_the_sentence_of_the_wrong_kind_and_too_few_nodes() -> None:
    told = shortage(Asked(4, ONE, "H100", spread="strict", plain=False), [A, B])
    assert told == (
        "asked: 4 workers with 1 H100 and 8 CPUs each, each on a node of its own; "
        "there: 2 H100 and 16 CPUs on a; 4 A100 and 32 CPUs on b; room for 1 of 4"
    )


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (Asked(9, ONE), 2 + 4),  # a: 16 CPUs / 8, b: 4 GPUs, with 32 CPUs / 8
        (Asked(9, {"CPU": 9.0, "GPU": 1.0}), 1 + 3),  # 16 // 9, 32 // 9
        (Asked(9, ONE, "A100"), 0 + 4),
        (Asked(9, ONE, spread="strict"), 1 + 1),
        (Asked(9, {"CPU": 1.0}, labels={"zone": "eu"}), 0),
        (Asked(9, {"CPU": 0.5}), 32 + 64),
        (Asked(9, {"CPU": 1.0, "fast_disk": 1.0}), 0),
    ],
)
def test_places_are_a_division_on_every_node(asked: Asked, found: int) -> None:
    assert sum(places(asked, each) for each in (A, B)) == found
    assert (shortage(asked, [A, B]) is None) == (found >= 9)


def test_one_node_for_all_needs_one_that_is_large_enough() -> None:
    assert shortage(Asked(4, ONE, spread="pack"), [A, B]) is None
    told = shortage(Asked(5, ONE, spread="pack"), [A, B])
    assert told is not None and "all on one node" in told and told.endswith("room for 4 of 5")


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (Asked(1, ONE, "H200"), "no node has a H200, there are A100, H100"),
        (Asked(1, ONE, labels={"zone": "eu"}), "no node has zone=eu, only us"),
        (Asked(1, ONE, labels={"rack": "7"}), "no node has rack=7"),
        (Asked(1, {"CPU": 64.0}), "no node has 64 CPUs"),
        (Asked(1, {"fast_disk": 1.0}), "no node has 1 fast_disk"),
    ],
)
def test_what_rules_out_every_node_is_named(asked: Asked, reason: str) -> None:
    told = shortage(asked, [node("a", 2, "H100", 16, zone="us"), B])
    assert told is not None and told.endswith(f"room for 0 of 1; {reason}")


def test_what_others_hold_is_waited_for_and_what_is_not_there_is_asked_for() -> None:
    asked = Asked(2, ONE, "H100", plain=False)
    busy = node("a", 2, "H100", 16, used=1)
    told, remedy = nodes_state(asked, [busy, B]) or ("", "")
    assert told.startswith("resources that other work holds: asked: 2 workers") and "free for 1 of 2" in told
    assert "wait for other jobs" in remedy
    told, remedy = nodes_state(asked, [B]) or ("", "")
    assert told.startswith("nodes: asked: 2 workers") and "add such nodes" in remedy
    assert nodes_state(asked, [A]) is None
    assert nodes_state(Asked(99, ONE), []) is None, "where any node will do, sums say enough"


def test_a_large_cluster_is_not_listed_whole() -> None:
    told = shortage(Asked(999, ONE), [node(f"n{i}", 1, "T4", 8) for i in range(20)])
    assert told is not None and "n7" in told and "n8" not in told and "and 12 more nodes" in told
