"""What columns of times and of sample numbers say of the samples beside them: their rate, and whether each sample
follows the one before."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_TIME = re.compile(
    r"(?:time|t|zeit|elapsed(?: time)?|sec|secs|seconds|ms|msec|milliseconds|us|times?tamp|epoch|unix(?:[ _]?time)?"
    r"|date[ _]?time)(?:$|[\s_(\[/,].*)"
)
_NUMBER = re.compile(
    r"|#|n|no\.?|nr\.?|idx|index|level_0|unnamed: 0"
    r"|(?:samples?|rows?|frames?)(?:[\s_.#-]*(?:#|n|no|nr|num|number|idx|index)\.?)?"
)
"""Names of the columns that number the rows; pandas writes its index without one."""
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6}
_TOO_FAR = 1.75
"""Usual steps from which one step is a gap and no rounded time: 1/360 s in whole ms goes by 2 and 3."""
_COARSE = 1.5
"""Mean steps from which the finest step says that a clock is coarser than the samples."""
_AROUND = 4
"""Rows on each side within which a late time may be made up for by early ones."""


def rates_of_time(names: Sequence[str], values: np.ndarray) -> list[float]:
    """Hz that the column of times of a table, (rows, columns) with these names, may mean; [] when it has none.

    Where the name does not say the unit, seconds, milliseconds and microseconds are possible.
    """
    for place, name in enumerate(names):
        word = _word(name)
        if not _TIME.fullmatch(word) or len(values) < 3:
            continue
        steps = np.diff(values[:, place].astype(np.float64))
        if not np.isfinite(steps).all() or steps.min() < 0 or steps.max() == 0:
            continue
        step = float(steps.mean())
        if step == 1.0:  # the number of the sample
            continue
        unit = re.search(r"(?<![a-z])(ms|msec|milliseconds|us|µs|s|sec|secs|seconds)(?![a-z])", word)
        if unit is None:
            return [per_second / step for per_second in _PER_SECOND.values()]
        short = "ms" if unit[1].startswith("m") else "us" if unit[1] in ("us", "µs") else "s"
        return [_PER_SECOND[short] / step]
    return []


def rows_out_of_order(names: Sequence[str], values: np.ndarray) -> str:
    """Where a column of times or of row numbers, (rows, columns) with these names, runs back or leaves rows out, in
    words; "" where none does, or where there is no such column.

    Clocks that are rounded, that jitter, and that begin anew (each minute, at 65536) are in order.
    """
    for place, name in enumerate(names):
        word, column = _word(name), values[:, place].astype(np.float64)
        counts = _NUMBER.fullmatch(word) is not None and bool((column == np.rint(column)).all())
        if not (counts or _TIME.fullmatch(word)) or len(column) < 3 or not np.isfinite(column).all():
            continue
        at = _out_of_line(column)
        if at is not None:
            called = f"column {name.strip()!r}" if name.strip() else "column of row numbers"
            return (
                f"its {called} goes from {column[at]:.12g} to {column[at + 1]:.12g} "
                f"between rows {at + 1} and {at + 2}: samples are out of order or missing; sort the rows, fill what is "
                "missing, or leave the column out if it says something else"
            )
    return ""


def _word(name: str) -> str:
    return name.strip(" '\"").casefold()


def _out_of_line(column: np.ndarray) -> int | None:
    """The first step of a column that breaks its order; None without."""
    steps = np.diff(column)
    forward, back = steps[steps > 0], np.flatnonzero(steps < 0)
    if not steps.any():
        return None
    if back.size:
        if not forward.size or np.ptp(steps[back]) > np.median(forward):
            return int(back[0])
        steps[back] = np.median(forward)  # it begins anew
    usual = float(np.median(steps[steps > 0]))
    if steps[steps > 0].min() >= _COARSE * steps.mean():
        return None
    far = np.flatnonzero(steps > _TOO_FAR * usual)
    step = float(np.delete(steps, far).mean())
    passed = np.concatenate([[0.0], np.cumsum(steps)])
    low, high = np.maximum(far - _AROUND, 0), np.minimum(far + _AROUND + 1, len(steps))
    late = (passed[high] - passed[low]) / step - (high - low)
    lost = far[late >= _TOO_FAR - 1]
    return int(lost[0]) if lost.size else None
