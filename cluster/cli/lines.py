"""A command's result as a reader of a terminal sees it, and as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def aligned(result: Mapping[str, Any]) -> list[str]:
    """`key  value` lines with the values in one column.

    Empty values, the exit code and `_...` keys are left out.
    """
    shown = {
        key.replace("_", " "): _words(value)
        for key, value in result.items()
        if value is not None and key != "exit_code" and key[0] != "_"
    }
    width = max((len(key) for key in shown), default=0)
    return [f"{key:<{width}}  {value}" for key, value in shown.items()]


def json_line(payload: Mapping[str, Any]) -> str:
    """`payload` as one JSON object in one line: paths and numpy values plainly, NaN and infinities as null."""
    plain = json.loads(json.dumps(payload, default=_plain))
    return json.dumps(_finite(plain), allow_nan=False).replace("\x7f", "\\u007f")  # the rest is escaped already


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_words(item) for item in value) or "none"
    return str(value)


def _plain(value: Any) -> Any:
    """What `json` does not know: paths, numpy scalars and arrays."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def _finite(value: Any) -> Any:
    """NaN and infinities are not JSON: they become null."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
