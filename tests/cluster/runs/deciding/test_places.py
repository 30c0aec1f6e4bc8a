"""Nodes that are gone though Ray still counts them, and how many workers find a place on the rest."""

from __future__ import annotations

import socket

import pytest

from cardialign.cluster.environment.nodes import Asked, Node
from cardialign.cluster.runs.deciding.places import NODE_ID, Door, Doors, elsewhere, knock, room


def node(name: str, cpus: float, free: float, **labels: str) -> Node:
    return Node(name, {"CPU": cpus}, {"CPU": free}, {NODE_ID: name, **labels})


A, B = node("a", 4, 1), node("b", 4, 0)


@pytest.mark.parametrize(
    ("spread", "ours", "without", "expected"),
    [
        ("default", {}, (), 1),
        ("default", {"a": 1, "b": 2}, (), 4),  # their places are to be had again
        ("default", {"a": 1, "b": 2}, ("b",), 2),
        ("strict", {"a": 1, "b": 2}, (), 2),
        ("strict", {}, (), 1),
        ("pack", {"a": 1, "b": 3}, (), 3),  # of one node
        ("pack", {"a": 1, "b": 3}, ("b",), 2),
        ("default", {"gone": 3}, (), 1),
    ],
)
def test_room_is_what_is_free_and_what_our_own_workers_hold(
    spread: str, ours: dict[str, int], without: tuple[str, ...], expected: int
) -> None:
    assert room(Asked(2, {"CPU": 1.0}, spread=spread), [A, B], ours, without) == expected


def test_room_counts_what_the_workers_ask_of_a_node() -> None:
    asked = Asked(1, {"CPU": 1.0}, labels={"zone": "x"})
    assert room(asked, [node("a", 4, 4, zone="x"), node("b", 4, 4, zone="y")]) == 4
    assert room(Asked(1, {"CPU": 2.0}), [node("a", 4, 3)]) == 1
    assert room(Asked(1, {"CPU": 1.0}), [A, B], free=False) == 8


def test_a_node_that_stops_answering_is_silent_from_then_on_until_it_answers_again() -> None:
    seconds, answers = [0.0], {"a": True, "b": True, "behind-a-firewall": False}
    doors: dict[str, Door] = {name: (name, 1) for name in answers}
    look = Doors(lambda door: answers[door[0]], lambda: seconds[0])
    look.look(doors)
    assert look.silent() == frozenset()
    answers["b"] = False
    for at in (10.0, 20.0, 30.0):
        seconds[0] = at
        look.look(doors)
    assert look.silent() == {"b"}, "who has never answered says nothing by it"
    assert look.silent(15.0) == {"b"} and look.silent(25.0) == frozenset()
    answers["b"] = True
    look.look(doors)
    assert look.silent() == frozenset()


def test_somebody_listens_or_nobody_does() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        door = listening.getsockname()
        assert knock(door)
    assert not knock(door)


def test_a_group_is_kept_off_silent_nodes_beside_what_else_it_asks() -> None:
    assert elsewhere({"zone": "x"}, ()) is None and elsewhere(None, ()) is None
    assert elsewhere({"zone": "x"}, ("b", "a")) == {"zone": "x", NODE_ID: "!in(a,b)"}
    from ray._private.label_utils import validate_label_selector

    made = elsewhere(None, ("ab" * 28, "cd" * 28))
    assert made is not None and not validate_label_selector(made), "words that Ray takes"
