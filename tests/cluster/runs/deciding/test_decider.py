"""What becomes of a run after a death, and when it grows, by table: no Ray, no clock but the test's."""

from __future__ import annotations

import pytest

from cardialign.cluster.environment.sizes import Sizes
from cardialign.cluster.runs.deciding.decider import SETTLED_SECONDS, Decider, Rules
from cardialign.cluster.watching.decisions import Decision


class Run:
    """A decider and its clock; a group of `room` workers is in the run."""

    def __init__(self, least: int, most: int, room: int | None = None, max_failures: int = 3) -> None:
        self.seconds = 100.0
        self.decider = Decider(Rules(Sizes(least, most), max_failures, grow_seconds=60.0), lambda: self.seconds)
        self.first = self.group(most if room is None else room)

    def group(self, room: int, step: int = 0) -> Decision | None:
        _, decision = self.decider.next_size(room, step)
        self.decider.started()
        return decision

    def dies(self, room: int, *, lost: bool = False, committed: int = 0, cause: str = "killed") -> Decision:
        """The decision on it: the stop, or how it goes on."""
        stop = self.decider.died(cause, node_lost=lost, committed=committed, step=committed + 2)
        found = stop or self.group(room, committed + 2)
        assert found is not None
        return found


def shown(decision: Decision) -> tuple[str, int, int, int]:
    return decision.kind, decision.before, decision.after, decision.failures


@pytest.mark.parametrize(
    ("least", "most", "room", "lost", "expected"),
    [
        (2, 2, 2, False, ("retry", 2, 2, 1)),
        (2, 2, 1, False, ("retry", 2, 2, 1)),  # as many as were asked for are waited for
        (2, 2, 1, True, ("retry", 2, 2, 0)),
        (1, 2, 1, True, ("resize", 2, 1, 0)),
        (1, 2, 2, False, ("retry", 2, 2, 1)),
        (2, 8, 5, True, ("resize", 8, 5, 0)),
        (2, 8, 1, True, ("resize", 8, 2, 0)),  # and for the fewest
        (2, 8, 20, True, ("retry", 8, 8, 0)),
    ],
)
def test_a_death_is_followed_by_as_many_as_there_is_room_for(
    least: int, most: int, room: int, lost: bool, expected: tuple[str, int, int, int]
) -> None:
    run = Run(least, most)
    assert run.first is None, "as many as were asked for: nothing had to be decided"
    decision = run.dies(room, lost=lost, committed=10)
    assert shown(decision) == expected
    assert decision.cause.startswith("killed") and decision.step == 12 and decision.attempt == 1
    assert not decision.planned and decision.of == 3


def test_a_start_with_fewer_than_there_may_be_is_a_decision_with_its_reason() -> None:
    first = Run(1, 4, room=3).first
    assert first is not None and shown(first) == ("resize", 4, 3, 0)
    assert first.cause == "room for 3 of up to 4 workers" and first.attempt == 0


def test_one_death_too_many_stops_and_counts_them() -> None:
    run = Run(1, 2, max_failures=2)
    assert [shown(run.dies(2)) for _ in range(3)] == [("retry", 2, 2, 1), ("retry", 2, 2, 2), ("stop", 2, 0, 3)]


def test_lost_nodes_are_no_failures_while_the_run_moves_and_are_when_it_takes_them_down() -> None:
    run = Run(1, 2, max_failures=1)
    for step in (10, 20, 30, 40, 50):
        assert run.dies(1, lost=True, committed=step).kind != "stop"
    stuck = Run(1, 2, max_failures=1)
    decisions = [stuck.dies(2, lost=True, committed=10) for _ in range(3)]
    assert [each.failures for each in decisions] == [0, 1, 2] and decisions[-1].kind == "stop"


def test_a_group_grows_once_there_is_room_that_lasts_and_it_has_lived_long_enough() -> None:
    run = Run(1, 4, room=1)
    run.seconds += 30
    assert not run.decider.may_grow(3)
    run.seconds += 31
    assert run.decider.may_grow(3), "60 s after it began, and the room has lasted"
    run.decider.stopped_to_grow()
    decision = run.group(3, step=44)
    assert decision is not None and shown(decision) == ("resize", 1, 3, 0)
    assert decision.planned and decision.step == 44 and "checkpoint" in decision.cause


def test_a_node_that_comes_and_goes_restarts_nothing() -> None:
    run = Run(1, 2, room=1)
    run.seconds += 1000
    for _ in range(50):
        assert not run.decider.may_grow(2)
        run.seconds += SETTLED_SECONDS - 1
        assert not run.decider.may_grow(1)
    assert not run.decider.may_grow(2)
    run.seconds += SETTLED_SECONDS
    assert run.decider.may_grow(2)


def test_neither_a_fixed_number_nor_the_largest_grows() -> None:
    for run in (Run(2, 2), Run(1, 4)):
        run.seconds += 1e6
        assert not run.decider.may_grow(100)
        run.seconds += 1e6
        assert not run.decider.may_grow(100)


def test_a_room_that_is_still_taken_is_not_told_as_the_reason() -> None:
    assert Run(1, 2).dies(0, lost=True, committed=10).cause == "killed; 1 are waited for"
    assert Run(1, 2).dies(1, lost=True, committed=10).cause == "killed; room for 1 of up to 2 workers"


def test_waiting_on_for_the_fewest_is_no_new_decision() -> None:
    run = Run(2, 2)
    assert run.decider.next_size(0) == (2, None) and run.decider.next_size(1) == (2, None)
