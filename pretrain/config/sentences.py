"""One mistake in a configuration, one sentence: the dotted key, what is wrong, the value, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

REMEDIES = {
    "missing": "add it",
    "greater_than": "give a larger number",
    "greater_than_equal": "give a larger number",
    "less_than": "give a smaller number",
    "less_than_equal": "give a smaller number",
    "int_from_float": "write it without decimals",
    "int_type": "write a whole number",
    "int_parsing": "write a whole number",
    "float_type": "write a number",
    "float_parsing": "write a number",
    "finite_number": "give a number with digits",
    "bool_type": "write true or false",
    "bool_parsing": "write true or false",
    "string_type": "write text, in quotes if it looks like a number",
    "tuple_type": "write a list, e.g. [a, b]",
    "too_long": "give fewer values",
    "too_short": "give more values",
    "dict_type": "write `name: value` lines under it",
    "model_type": "write `key: value` lines under it",
    "path_type": "write a folder or a URL, in quotes if it looks like a number",
    "invalid_key": "write the key as text, in quotes if it looks like a number",
}
REASONS = {"model_type": "input should be a mapping", "path_type": "input should be a path"}
"""Kinds of mistakes that the library words with names of classes."""


def sentences(error: ValidationError, model: type[BaseModel], chosen: Mapping[str, type[BaseModel]]) -> list[str]:
    """Every mistake of `error` as lines "dotted.key: what is wrong (value); what to do".

    model is what was validated; chosen gives the class of each section that decides by its `name` which keys it has.
    """
    return [line for one in error.errors() for line in sentences_of(one, model, chosen)]


def told(value: Any) -> str:
    """A value as a recipe has it, for a message; the ends of one that is very long."""
    if value is None:
        return "null"
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 300 else f"{text[:200]}...{text[-60:]}"


def _known_keys(location: tuple[Any, ...], model: Any, chosen: Mapping[str, type[BaseModel]]) -> list[str]:
    """Keys of the section that `location` points into; through lists (patches) and sections."""
    for depth, part in enumerate(location[:-1]):
        if isinstance(part, str):
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field is not None else None
            model = next((a for a in get_args(model) if hasattr(a, "model_fields")), model)
            model = chosen.get(part, model) if depth == 0 else model
    return list(getattr(model, "model_fields", {}))


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean `{near[0]}`?" if near else ""


def sentences_of(error: Any, model: type[BaseModel], chosen: Mapping[str, type[BaseModel]]) -> list[str]:
    """One pydantic error -> lines "dotted.key: what is wrong (value); what to do"."""
    location = tuple(error["loc"])
    key = ".".join(str(part) for part in location) or "(recipe)"
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        known = _known_keys(location, model, chosen)
        return [f"{key}: unknown key; {_nearest(str(location[-1]), known) or 'known keys here: ' + ', '.join(known)}"]
    if kind == "literal_error":
        words = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        near = _nearest(value if isinstance(value, str) else told(value), words)
        return [f"{key}: {told(value)} is not one of {', '.join(words)}; {near or 'use one of these'}"]
    shown = "" if isinstance(value, dict | list | BaseModel) else f" (got {told(value)})"
    if kind == "value_error":
        return [f"{key}: {line}" for line in error["msg"].removeprefix("Value error, ").splitlines()]
    reason = REASONS.get(kind) or (
        (error["msg"][:1].lower() + error["msg"][1:])
        .replace("valid tuple", "list")
        .replace("valid dictionary", "mapping")
    )
    return [f"{key}: {reason}{shown}; {REMEDIES.get(kind, 'correct the value')}"]
