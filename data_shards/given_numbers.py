"""Numbers that a caller gives, looked at where they come in: a text is no number, and its letters are no folds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from cardialign.data_shards.errors import UsageError


def whole_number(name: str, value: Any, least: int) -> int:
    """`value` as an int of at least `least`. Raises UsageError for anything else, True, 2.0 and "2" among them."""
    remedy = f"set {name} to {least} or more"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UsageError(f"{name} is {value!r:.60} (a {type(value).__name__}), no whole number", remedy)
    if value < least:
        raise UsageError(f"{name} is {value}; it must be at least {least}", remedy)
    return int(value)


def positive_number(name: str, value: Any) -> float:
    """`value`, which must be a finite number above 0. Raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
        raise UsageError(
            f"{name} is {value!r:.60} (a {type(value).__name__}), no finite number above 0", f"give {name} as a number"
        )
    return float(value)


def fold_numbers(value: Any) -> tuple[int, ...] | None:
    """Folds as given; None for all. Raises UsageError for one number, for a text (`"10"` is not folds 1 and 0) and for
    what are no whole numbers."""
    if value is None:
        return None
    remedy = "give whole numbers in a list, such as folds=[9, 10]"
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise UsageError(f"folds is {value!r:.60} (a {type(value).__name__})", remedy)
    given = tuple(value)
    if any(isinstance(fold, bool) or not isinstance(fold, Integral) for fold in given):
        raise UsageError(f"folds is {value!r:.60}: not all of these are whole numbers", remedy)
    return tuple(int(fold) for fold in given)
