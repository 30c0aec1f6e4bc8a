"""The benchmark of an exposure certificate asks what it says that it asks."""

from __future__ import annotations

from collections.abc import Callable

from tests.cluster.conftest import Answer


def test_every_name_of_the_list_is_found_and_no_other(cardialign: Callable[..., Answer]) -> None:
    told = cardialign("bench", "exposure", "--names", 200, "--listed", 300).json
    assert told["listed"] == 300
    assert [(row["in_the_list"], row["names"], row["found"]) for row in told["rows"]] == [
        ("none", 200, 0), ("half", 200, 100), ("all", 200, 200),
    ]  # fmt: skip
    assert all(row["seconds"] >= 0 for row in told["rows"])
