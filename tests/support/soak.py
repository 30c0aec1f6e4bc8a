"""Tests in their long form: property tests with more examples, and parameters that `make test` leaves out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import is_hypothesis_test, settings

SETTINGS = "_hypothesis_internal_use_settings"
"""Where a property test keeps its settings. Hypothesis has no public way to change them after they were set."""


def more_examples(test: Callable[..., Any], times: int) -> None:
    """Let a property test draw `times` as many examples as it was written to; other tests stay as they are."""
    if is_hypothesis_test(test):
        written: settings = getattr(test, SETTINGS)
        setattr(test, SETTINGS, settings(written, max_examples=written.max_examples * times))


def long_form(parameter: Any) -> Any:
    """A parameter of a test that only `make test-slow` tries: a sibling of it stands in `make test`."""
    return pytest.param(parameter, marks=pytest.mark.slow)
