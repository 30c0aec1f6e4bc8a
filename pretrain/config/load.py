"""From a recipe's file or name, and overrides, to a `RunConfig`; and from the words of earlier releases to today's."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.locations import url_of
from cardialign.data_shards.plugins import Table
from cardialign.pretrain.choices import ENCODERS, METHODS
from cardialign.pretrain.config.fields import Strict
from cardialign.pretrain.config.run import MAIN, RunConfig, section
from cardialign.pretrain.config.sections import EncoderConfig
from cardialign.pretrain.config.sentences import sentences

RECIPES = Path(__file__).parents[1] / "recipes"

RENAMED = {"model": "encoder", "objective": "method"}
"""Sections of version 1 and what they are called now."""
RENAMED_METHODS = {"diagsim": "cardialign"}
"""`objective.name` of version 1 -> `method.name`."""


def upgrade(values: dict[str, Any], origin: str = "configuration") -> dict[str, Any]:
    """A configuration written by any release, as today's release words it; today's comes back as it is.

    The one place that knows old words.

    Raises UsageError when a section stands there under its old and under its new name.
    """
    upgraded = dict(values)
    for old, new in RENAMED.items():
        if old not in upgraded:
            continue
        if new in upgraded:
            raise UsageError(f"{origin} has both {new} and its old name {old}", f"move what is under {old} to {new}")
        upgraded[new] = upgraded.pop(old)
    method = upgraded.get("method")
    if isinstance(method, dict) and method.get("name") in RENAMED_METHODS:
        upgraded["method"] = {**method, "name": RENAMED_METHODS[method["name"]]}
    return upgraded


def parse_config(values: dict[str, Any], origin: str = "configuration") -> RunConfig:
    """Dict, of this release or an earlier one, -> RunConfig.

    Raises UsageError naming every mistake at once: dotted key, reason, value, remedy.
    """
    renamed = [f"{old} is called {new} now" for old, new in RENAMED.items() if old in values]
    values = upgrade(values, origin)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        chosen = {"encoder": _class(ENCODERS, values), "method": _class(METHODS, values)}
        lines = sentences(error, RunConfig, chosen)
        count = f"{len(lines)} mistake{'s' if len(lines) > 1 else ''}"
        raise UsageError(
            f"{origin} has {count}:\n" + "\n".join(f"  - {line}" for line in lines),
            "; ".join([*renamed, "correct the keys above and run again"]),
        ) from None


def encoder_section(values: dict[str, Any], origin: str) -> EncoderConfig:
    """The section `encoder:` of a stored configuration alone, whatever method trained it. Raises UsageError."""
    try:
        found: EncoderConfig = section(ENCODERS, upgrade(values, origin).get("encoder", MAIN))
    except ValueError as error:  # pydantic's, and that of an unknown name
        raise UsageError(
            f"{origin}: encoder: {error}",
            "load it with the release that wrote it, or install the package of the encoder",
        ) from None
    return found


def _class(table: Table, values: dict[str, Any]) -> type[Strict]:
    """The configuration class of a section that may hold mistakes: its base when the name is one of them."""
    section = values.get(table.kind, MAIN)
    name = section.get("name", MAIN["name"]) if isinstance(section, dict) else ""
    try:
        return table.find(str(name)).Config
    except UsageError:
        return Strict


def set_dotted(values: dict[str, Any], assignment: str) -> None:
    """Apply one `--set a.b=value` in place; the value is read as YAML. Raises UsageError when there is no `=`."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {assignment!r} is not KEY=VALUE", "write for example --set optimizer.lr=1e-3")
    first, *others = key.strip().split(".")
    *parents, last = [RENAMED.get(first, first) if others else first, *others]
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UsageError(
                f"--set {assignment!r}: {parent} is not a section", "give the dotted key of a single value"
            )
    value = yaml.safe_load(text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        with contextlib.suppress(ValueError):
            value = float(value)
    values[last] = value


def recipe_names() -> list[str]:
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def load_config(recipe: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> RunConfig:
    """Recipe name (see `recipe_names`) or YAML path, then `a.b=value` overrides in order. Raises UsageError."""
    path = Path(recipe)
    if not path.suffix and (RECIPES / f"{recipe}.yaml").is_file():
        path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        raise UsageError(f"no recipe {str(recipe)!r}", f"use a YAML file or one of: {', '.join(recipe_names())}")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}", "correct the line named above") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} does not hold a mapping", "write `section:` blocks with `key: value` lines")
    values = upgrade(values, str(path))  # before the overrides, which may use old words or new ones
    for assignment in overrides:
        set_dotted(values, assignment)
    _place_paths(values)
    return parse_config(values, str(path))


def _place_paths(values: dict[str, Any]) -> None:
    """Relative folders of `init_from`, `data.shards` and `data.mixture` -> absolute ones, in place.

    Workers and later starts of a run have other working folders.
    """
    start = values.get("init_from")
    if isinstance(start, str) and not start.startswith("models:/"):
        values["init_from"] = str(Path(start).expanduser().absolute())
    data = values.get("data")
    if not isinstance(data, dict):
        return
    mixture = data.get("mixture")
    for part in [data, *(mixture if isinstance(mixture, list) else [])]:
        if isinstance(part, dict) and isinstance(part.get("shards"), str):
            part["shards"] = url_of(part["shards"]) or str(Path(part["shards"]).expanduser().absolute())
