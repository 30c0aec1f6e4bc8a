"""Which values of `trainer_state.json` a run can have written: anybody can have sealed a file, so it is only data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from cardialign.data_shards.files import is_shallow

DEEPEST = 50
"""No configuration is nested so deeply; deeper ones end the recursion of whoever walks through them."""


def state_mistakes(values: Any, step: int | None) -> list[str]:
    """What is wrong with the values of a trainer state, a line each; step: that of the folder's name, None = any."""
    if not isinstance(values, dict):
        return ["not a JSON object"]
    mistakes = [f"unknown key {key!r:.60}" for key in values if key not in _RULES]
    mistakes += [f"{key} is missing" for key in _NEEDED if key not in values]
    for key, (rule, said) in _RULES.items():
        if key in values and not rule(values[key]) and not (values[key] is None and key not in _NEEDED):
            mistakes.append(f"{key} is {_short(values[key])}, not {said}")
    if mistakes:
        return mistakes
    if step is not None and values["step"] != step:
        mistakes.append(f"step is {values['step']}, the checkpoint is that of step {step}")
    plan = values.get("plan")
    if plan is not None and not _follows(plan, values["step"]):
        mistakes.append(f"plan is {_short(plan)}, not stretches in order, of which the run is in the last")
    return mistakes


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    return (
        f"a {'list' if isinstance(value, list) else 'mapping'}" if isinstance(value, list | dict) else f"{value!r:.60}"
    )


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value < 10**15


def _text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 1000 and value.isascii()


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _spec(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"sampling_rate", "seconds"}
        and all(_number(each) and 0 < each <= 1_000_000 for each in value.values())
    )


def _plan(value: Any) -> bool:
    whole = _whole(0)
    pairs = isinstance(value, list) and all(isinstance(each, list) and len(each) == 2 for each in value)
    return pairs and bool(value) and all(whole(number) for each in value for number in each)


def _follows(plan: list[list[int]], step: int) -> bool:
    firsts = [first for first, _ in plan]
    return firsts[0] == 0 and firsts == sorted(set(firsts)) and firsts[-1] <= step <= plan[-1][1]


def _configuration(value: Any) -> bool:
    return isinstance(value, dict) and is_shallow(value, DEEPEST)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (_whole(0), "a number of steps"),
    "digest": (_text, "a digest"),
    "config": (_configuration, "a configuration"),
    "selection_fingerprint": (_text, "a fingerprint"),
    "world_size": (_whole(1), "a number of workers"),
    "order_version": (_whole(0), "a version"),
    "loss": (_number, "a finite number"),
    "spec": (_spec, "a sampling rate in Hz and seconds"),
    "shards_fingerprint": (_text, "a fingerprint"),
    "bank_digest": (_text, "a digest"),
    "plan": (_plan, "pairs of first step and steps in all"),
}
_NEEDED = ("step", "digest", "config", "selection_fingerprint", "world_size", "order_version")
