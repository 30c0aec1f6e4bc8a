"""The long run of a property test draws as many examples as it says."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.soak import more_examples


def test_a_property_test_draws_so_many_times_its_examples() -> None:
    drawn: list[int] = []

    @settings(max_examples=7, deadline=None, database=None)
    @given(st.integers())
    def property_test(number: int) -> None:
        drawn.append(number)

    property_test()
    assert len(drawn) == 7
    more_examples(property_test, 3)
    drawn.clear()
    property_test()
    assert len(drawn) == 21


def test_another_test_stays_as_it_is() -> None:
    def plain_test() -> None:
        raise AssertionError("not called")

    before = dict(vars(plain_test))
    more_examples(plain_test, 3)
    assert vars(plain_test) == before
