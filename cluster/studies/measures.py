"""What a cell is scored by on the fold kept out.

`zero_shot`: by words. `probe`: a linear probe of its features that learns from all labels of the other folds;
`probe_10`: from a tenth of them, drawn by the seed, the same for every row. `fresh`: the probe of the same encoder with
fresh weights, which says what training gave.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

ZERO_SHOT, PROBE, FRESH = "zero_shot", "probe", "fresh"
MEASURES = (ZERO_SHOT, PROBE)
"""Of a study that names none."""
_SHARE = re.compile(r"probe_([1-9][0-9]?)")


def share_of(measure: str) -> float | None:
    """The share of the labels that a probe learns from; None of what is no probe."""
    if measure in (PROBE, FRESH):
        return 1.0
    found = _SHARE.fullmatch(measure)
    return None if found is None else int(found.group(1)) / 100


def words_of(measure: str) -> str:
    """For the head of a table."""
    if measure == ZERO_SHOT:
        return "zero-shot"
    share = share_of(measure)
    return "probe" if share == 1 else f"probe, {100 * (share or 0):.0f} % of the labels"


def ranked(measures: tuple[str, ...]) -> tuple[str, ...]:
    """Those that have a column of their own: all but that of fresh weights, which is compared with the probe."""
    return tuple(each for each in measures if each != FRESH)


def of_labels(measures: tuple[str, ...]) -> tuple[str, ...]:
    """What a network can be scored by that labels alone train: it has no words, and its fresh weights no meaning."""
    return tuple(each for each in measures if each not in (ZERO_SHOT, FRESH))


def of_floor(measures: tuple[str, ...], *, words: bool) -> tuple[str, ...]:
    """What a floor can be scored by: by words, where it has any."""
    return tuple(each for each in measures if each != FRESH and (words or each != ZERO_SHOT))


def draws_labels(measures: Sequence[str]) -> bool:
    """Whether the seed decides from which labels a probe learns."""
    return any((share_of(each) or 1) < 1 for each in measures)


def unknown_measures(measures: Any, missingness: bool) -> str:
    """What is wrong with the measures of a study, "" for nothing."""
    if not isinstance(measures, list) or not all(isinstance(each, str) for each in measures):
        return "measures is no list of words"
    if wrong := [each for each in measures if each != ZERO_SHOT and share_of(each) is None]:
        return f"measures has {wrong[0]!r:.40}; known: {ZERO_SHOT}, {PROBE}, probe_10 (10 % of the labels), {FRESH}"
    if len(set(measures)) < len(measures):
        return "measures names one twice"
    if PROBE not in measures:
        return f"measures has no {PROBE}, which every study has"
    if missingness and ZERO_SHOT not in measures:
        return f"missingness is scored by words, and measures has no {ZERO_SHOT}"
    return ""
