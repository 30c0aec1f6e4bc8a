"""`--workers 4` and `--workers 2-4`: what is read, what is refused in words, and which of them a room has place for."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from cardialign.cluster.environment.sizes import Sizes, sizes, sizes_of


@pytest.mark.parametrize(
    ("text", "least", "most", "elastic"), [("4", 4, 4, False), ("2-4", 2, 4, True), (" 1 - 16 ", 1, 16, True)]
)
def test_a_number_or_two_are_read(text: str, least: int, most: int, elastic: bool) -> None:
    read = sizes(text)
    assert (read.least, read.most, read.elastic) == (least, most, elastic)
    assert sizes(str(read)) == read, "what it shows is what it reads"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "one worker is the least"),
        ("0-3", "one worker is the least"),
        ("4-2", "write 2-4"),
        ("two", "write for example 4, or 2-4"),
        ("2-", "write for example 4, or 2-4"),
        ("-2", "write for example 4, or 2-4"),
        ("2-4-8", "write for example 4, or 2-4"),
        ("1-999999", "more than 100000"),
        ("x" * 500, "..."),
    ],
)
def test_what_is_no_number_of_workers_is_refused_with_what_to_write(text: str, says: str) -> None:
    with pytest.raises(ArgumentTypeError) as refused:
        sizes(text)
    assert says in str(refused.value) and len(str(refused.value)) < 200


def test_a_room_gets_as_many_as_fit_and_the_fewest_are_waited_for() -> None:
    assert [Sizes(2, 4).for_room(room) for room in (0, 1, 2, 3, 4, 9)] == [2, 2, 2, 3, 4, 4]
    assert {sizes_of(3).for_room(room) for room in (0, 3, 9)} == {3}, "a fixed number stays, whatever there is"
