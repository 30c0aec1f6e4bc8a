"""From a recipe's file or name, and overrides, to a `RunConfig`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.plugins import Table
from cardialign.pretrain.choices import ENCODERS, METHODS
from cardialign.pretrain.config.fields import Strict
from cardialign.pretrain.config.inherit import recipe_file, recipe_names, short, written_values
from cardialign.pretrain.config.named import MAIN, RENAMED, name_of, stored_text, upgrade
from cardialign.pretrain.config.places import place_paths
from cardialign.pretrain.config.run import RunConfig
from cardialign.pretrain.config.sentences import sentences_of, told
from cardialign.pretrain.config.yaml_text import read_yaml

CHOICES = (ENCODERS, METHODS)
"""The tables of the sections that decide by their `name` which keys they have; the kind is the section's word."""


def parse_config(values: dict[str, Any], origin: str = "configuration") -> RunConfig:
    """Dict, of this release or an earlier one, -> RunConfig.

    Raises UsageError naming every mistake at once: dotted key, reason, value, remedy.
    """
    if not isinstance(values, dict):
        raise UsageError(f"{origin} is {short(told(values))}, not a mapping", "give a dict of sections")
    values, words = upgrade(values, origin), _old_words(values)
    if "text" in values:
        values["text"] = stored_text(values["text"])
    return _parse(values, origin, words, {})


def _old_words(sections: Iterable[str]) -> list[str]:
    """What to say of each word of version 1 among the names of sections."""
    given = set(sections)
    return [f"{old} is called {new} now" for old, new in RENAMED.items() if old in given]


def _parse(
    values: dict[str, Any],
    origin: str,
    remedies: list[str],
    of_sections: Mapping[str, str],
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Dict in today's words -> RunConfig.

    remedies open the remedy of a refusal; of_sections are more of them, each said when its section has a mistake.
    overrides: what was set beside the origin; a mistake of theirs is told as theirs.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        chosen = {table.kind: _class(table, values) for table in CHOICES}
        lines: list[str] = []
        theirs = 0
        for one in error.errors():
            sentences = sentences_of(one, RunConfig, chosen)
            told = None if one["type"] == "extra_forbidden" else " ".join(sentences)
            by = _overrides_of(tuple(map(str, one["loc"])), told, overrides)
            theirs += bool(by)
            said = f" (said by {', '.join(f'--set {short(each)}' for each in by)})" if by else ""
            lines += [line + said for line in sentences]
        if theirs == len(error.errors()):
            origin = f"what is set beside {origin}"
        wrong = {one["loc"][0] for one in error.errors() if one["loc"]}
        remedies = [*remedies, *(remedy for section, remedy in of_sections.items() if section in wrong)]
        count = f"{len(lines)} mistake{'s' if len(lines) > 1 else ''}"
        raise UsageError(
            f"{origin} has {count}:\n" + "\n".join(f"  - {line}" for line in lines),
            "; ".join([*remedies, "correct the keys above and run again"]),
        ) from None


def _overrides_of(location: tuple[str, ...], told: str | None, overrides: Sequence[str]) -> list[str]:
    """The last assignment that wrote this key, or what it is in; none where no one did.

    A mistake of a whole section is that of the assignments to keys in it which it names; one that nobody knows (told is
    None) that of all of them.
    """
    inside: dict[tuple[str, ...], str] = {}
    for assignment in reversed(overrides if location else ()):
        first, *others = assignment.partition("=")[0].strip().split(".")
        key = (RENAMED.get(first, first), *others)
        if key == location[: len(key)]:
            return _named(inside, len(location), told) or [assignment]
        if key[: len(location)] == location:
            inside.setdefault(key, assignment)
    return _named(inside, len(location), told)


def _named(inside: dict[tuple[str, ...], str], depth: int, told: str | None) -> list[str]:
    """The assignments, first to last, to a key whose words behind the first `depth` are told."""
    words = None if told is None else set(re.findall(r"\w+", told))
    return [
        each
        for key, each in reversed(inside.items())
        if words is None or words.intersection(key[depth:]) or _names_one(key[depth:], each, told)
    ]


def _names_one(key: tuple[str, ...], assignment: str, told: str | None) -> bool:
    """Whether it sets a section's `name` to what the mistake quotes: `encoder: unknown encoder 'vit2d'`."""
    return key == ("name",) and told is not None and repr(assignment.partition("=")[2].strip()) in told


def _class(table: Table, values: dict[str, Any]) -> type[Strict]:
    """The configuration class of a section that may hold mistakes: its base when the name is one of them."""
    try:
        return table.find(name_of(values.get(table.kind, MAIN))).Config
    except UsageError:
        return Strict


def set_dotted(values: dict[str, Any], assignment: str) -> None:
    """Apply one `--set a.b=value` in place; the value is read as YAML, the key may be an old word.

    A mapping changes the keys that it names and leaves the others of its section as they are; with a `name` in it, or
    empty, it is the whole section. Raises UsageError when there is no `=`, and for a value that YAML cannot read.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {short(assignment)} is not KEY=VALUE", "write for example --set optimizer.lr=1e-3")
    first, *others = key.strip().split(".")
    *parents, last = [RENAMED.get(first, first), *others]
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UsageError(
                f"--set {short(assignment)}: {parent} is not a section", "give the dotted key of a single value"
            )
    value = read_yaml(text, f"--set {short(assignment)}")
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        with contextlib.suppress(ValueError):
            value = float(value)
    section = values.get(last)
    if isinstance(value, dict) and isinstance(section, dict) and value and "name" not in value:
        values[last] = {**section, **value}
    else:
        values[last] = value


def load_config(recipe: str | Path, overrides: str | tuple[str, ...] | list[str] = ()) -> RunConfig:
    """Recipe name (see `recipe_names`) or YAML path, then `a.b=value` overrides in order, or one. Raises UsageError."""
    path = recipe_file(recipe)
    overrides = _assignments(overrides)
    values, written, files = written_values(path)  # before the overrides, which may use old words or new ones
    asked = f"recipe {recipe}" if str(recipe) in recipe_names() else str(path)
    origin = asked if len(files) == 1 else f"{asked} (which extends {', '.join(each.stem for each in files[1:])})"
    before = {table.kind: name_of(values.get(table.kind, MAIN)) for table in CHOICES}
    for assignment in overrides:
        set_dotted(values, assignment)
    values = upgrade(values, origin)  # an override may have brought the old name of a method
    place_paths(values)
    words = [*written, *(assignment.strip().partition("=")[0].partition(".")[0] for assignment in overrides)]
    return _parse(values, origin, _old_words(words), _whole_sections(before, values), overrides)


def _assignments(overrides: Any) -> list[str]:
    """One `a.b=value` or several, as a list. Raises UsageError for anything else."""
    given = [overrides] if isinstance(overrides, str) else overrides
    if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
        raise UsageError(
            f"the overrides of a recipe are {short(told(overrides))}", 'give a list such as ["optimizer.lr=1e-3"]'
        )
    return list(given)


def _whole_sections(before: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, str]:
    """Section -> the way out, for each whose `name` the overrides changed while the recipe's other keys stayed."""
    ways = {}
    for table in CHOICES:
        given = values.get(table.kind, MAIN)
        name = given if isinstance(given, str) else name_of(given)
        if name != before[table.kind] and name in table:
            ways[table.kind] = (
                f"to change the {table.kind} give the whole section: --set '{table.kind}={{name: {name}}}'"
            )
    return ways
