"""The table of every key of a recipe, from the typed configuration."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from cardialign.data_shards.plugins import Table
from cardialign.pretrain.choices import ENCODERS, METHODS
from cardialign.pretrain.config import RunConfig, Strict
from deploy.site.reference.text import page, prose, table

WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
SIGNS = {Gt: ("above {}", "gt"), Ge: ("from {}", "ge"), Lt: ("below {}", "lt"), Le: ("to {}", "le")}
INTRODUCTION = """A recipe is a YAML file of these sections. The same words are options
(`--set training.steps=100`, `--set 'encoder={name: vit1d, size: tiny}'`) and arguments in Python. A key that is not
here is refused, with the nearest one that is. `cardialign recipes show NAME` prints a recipe with every default filled
in, `cardialign recipes diff A B` what two of them differ in. A recipe that begins with `extends: NAME` says only what
is other than in that one.

"-" in the column "default" means that the key must be given."""


def configuration() -> str:
    """The page `reference/configuration.md`."""
    parts = [INTRODUCTION, "## Of the run", prose(RunConfig.__doc__, RunConfig.model_fields)]
    sections = {name: _section(field.annotation) for name, field in RunConfig.model_fields.items()}
    parts.append(_keys(RunConfig, "", [name for name, section in sections.items() if section is None]))
    for name, section in sections.items():
        if section is None:
            continue
        parts += _described(f"`{name}:`", section, f"{name}.", 2)
        for choice in {"encoder": ENCODERS, "method": METHODS}.get(name, ()):
            parts += _chosen(name, choice, {"encoder": ENCODERS, "method": METHODS}[name])
    return page("Configuration: every key", *parts)


def own(names: Table) -> list[str]:
    """The rows of a table that are ours: what a package on this machine adds is no part of the pages."""
    return [name for name in names if name not in names.plugins]


def _chosen(section: str, name: str, names: Table) -> list[str]:
    """The keys that one encoder, or one method, adds to its section."""
    if name not in own(names):
        return []
    config = names.find(name).Config
    base = _section(RunConfig.model_fields[section].annotation)
    assert base is not None
    return _described(f"`{section}.name: {name}`", config, f"{section}.", 3, set(base.model_fields))


def _described(title: str, config: type[Strict], prefix: str, level: int, known: set[str] | None = None) -> list[str]:
    """Title, docstring and keys of a section, and of the sections inside it."""
    names = [name for name in config.model_fields if name not in (known or set())]
    parts = [f"{'#' * level} {title}", prose(config.__doc__, config.model_fields), _keys(config, prefix, names)]
    for name in names:
        inner = _section(config.model_fields[name].annotation)
        if inner is not None:
            parts += _described(f"`{prefix}{name}:`", inner, f"{prefix}{name}.", min(level + 1, 4))
    return parts


def _keys(config: type[Strict], prefix: str, names: list[str]) -> str:
    if not names:
        return "It adds no key."
    rows = []
    for name in names:
        field = config.model_fields[name]
        kind = field.annotation if not field.metadata else Annotated[(field.annotation, *field.metadata)]
        default = "-" if field.is_required() else f"`{_value(field.get_default(call_default_factory=True))}`"
        if isinstance(field.default, Strict):
            default = "the section's"
        rows.append([f"`{prefix}{name}`", takes(kind), default])
    return table(["key", "takes", "default"], rows)


def _section(annotation: Any) -> type[Strict] | None:
    """The section that an annotation names, alone, beside null, or as an element; None where it is a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation
    found = [_section(inner) for inner in get_args(annotation)]
    return next((each for each in found if each is not None), None)


def takes(annotation: Any, bounds: tuple[Any, ...] = ()) -> str:
    """What a value may be, in words: `Annotated[int, Gt(0)] | None` -> "whole number above 0, or null"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return takes(inner[0], (*bounds, *inner[1:]))
    if origin is Literal:
        return " or ".join(f"`{_value(each)}`" for each in inner)
    if origin in (Union, UnionType):
        words = [takes(each, bounds) for each in inner if each is not NoneType]
        return " or ".join(words) + (", or null" if NoneType in inner else "")
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return f"list, each: {takes(inner[0])}"
        return f"list of {len(inner)}, each: {' / '.join(dict.fromkeys(map(takes, inner)))}"
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return "a section, below"
    word = WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return " ".join([word, *_limits(bounds)])


def _limits(bounds: tuple[Any, ...]) -> list[str]:
    found = [limit for bound in bounds for limit in (getattr(bound, "metadata", None) or [bound])]
    signs = [(*SIGNS[type(limit)], limit) for limit in found if type(limit) in SIGNS]
    return [words.format(_number(getattr(limit, name))) for words, name, limit in signs]


def _number(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 2**16 and math.log2(abs(value)).is_integer():
        return f"{'-' if value < 0 else ''}2^{int(math.log2(abs(value)))}"
    return f"{value:g}" if isinstance(value, float) or abs(value) >= 10**6 else str(value)


def _value(value: Any) -> str:
    """A default as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Strict):
        return _value(value.model_dump(exclude_defaults=True))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value.value if isinstance(value, Enum) else value) or '""'
