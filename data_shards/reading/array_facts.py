"""What an .npz says of its signal in one array that holds several facts: a mapping as JSON text, or a structured
value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cardialign.data_shards.errors import RecordRejected
from cardialign.data_shards.files import parse_json


def letters(name: str) -> str:
    """The name without capitals and marks: `samplingRate` and `sampling_rate` are one."""
    return "".join(each for each in name.casefold() if each.isalnum())


def with_inner_facts(others: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """The arrays beside a signal, and those that stand in one of them: `{"fs": 500}` as text, or fields of a structured
    value. What is no such mapping is left as it is.

    Raises RecordRejected("bad-format") where one fact is given twice, and not alike.
    """
    found = {name: each for name, each in others.items() if each.dtype.names is None}
    known = {letters(name): (name, each) for name, each in found.items()}
    for outer, array in others.items():
        for name, value in _inside(array):
            other, each = known.setdefault(letters(name), (f"{outer}.{name}", value))
            if not np.array_equal(each, value):
                raise RecordRejected(
                    "bad-format", f"{where}: {other} says {_short(each)}, {outer}.{name} says {_short(value)}"
                )
            if each is value:
                found.setdefault(name, value)
    return found


def _inside(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if array.dtype.names is not None:
        pairs: list[tuple[str, Any]] = []
        if array.size == 1:
            pairs = [(name, array[name].reshape(array[name].shape[array.ndim :])) for name in array.dtype.names]
    else:
        pairs = list(_mapping(array).items())
    for name, value in pairs:
        one = isinstance(value, np.ndarray | str | float | int) and not isinstance(value, bool)
        flat = isinstance(value, list) and len({type(each) for each in value}) == 1
        if one or flat:
            told = np.asarray(value)
            if told.dtype.kind in "iufUS":
                yield name, told


def _mapping(array: np.ndarray) -> dict[str, Any]:
    if array.size != 1 or array.dtype.kind not in "US":
        return {}
    text = array.flat[0]
    try:
        told = parse_json(text) if text.strip()[:1] in ("{", b"{") else {}
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _short(value: np.ndarray) -> str:
    return str(value.tolist())[:60]
