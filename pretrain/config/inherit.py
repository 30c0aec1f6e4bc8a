"""What a recipe's file says, with what it takes over from another recipe: `extends: cardialign-small`.

Sections are joined key by key, and the extending recipe's word counts; lists are taken whole, and so is a section that
names another method, encoder or schedule than the one that it would be joined with. A recipe without a `name` that
extends another one is called like its file. Files of recipes come from anybody: one may extend a shipped recipe, or a
file in its own folder or below, and nothing else.
"""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath
from typing import Any

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.files import read_text
from cardialign.data_shards.plugins import did_you_mean
from cardialign.data_shards.shown import shown
from cardialign.pretrain.config.named import MAIN, upgrade
from cardialign.pretrain.config.sentences import told
from cardialign.pretrain.config.yaml_text import read_yaml

RECIPES = Path(__file__).parents[1] / "recipes"
EXTENDS = "extends"
KINDS = ("encoder", "method")
MOST = 8
"""Recipes in a row that extend each other."""


def recipe_names() -> list[str]:
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def short(text: str, most: int = 160) -> str:
    """Quoted, for a message; a very long one is cut and counted."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}... ({len(text)} characters)"


def recipe_file(recipe: str | Path) -> Path:
    """The file of a shipped recipe's name, or the path as it is. Raises UsageError when there is no such file."""
    if not isinstance(recipe, str | Path):
        raise UsageError(f"{short(told(recipe))} is no recipe", "give the name of a recipe, or a YAML file")
    path = Path(recipe)
    with contextlib.suppress(OSError, ValueError):  # no name of a file at all: too long, or with a NUL
        if (shipped := _shipped(str(recipe))) is not None:
            return shipped
        if path.is_file():
            return path
    near = did_you_mean(str(recipe), recipe_names())
    raise UsageError(f"no recipe {short(str(recipe))}{near}", f"use a YAML file or one of: {', '.join(recipe_names())}")


def written_values(path: Path) -> tuple[dict[str, Any], list[str], list[Path]]:
    """The values of a recipe's file in today's words, joined with those of the recipes that it extends; the sections
    as they are written in any of them; and the files, the recipe's own first.

    Raises UsageError for a file that cannot be read, a recipe that may not be extended, and a circle.
    """
    chain: list[Path] = []
    words: list[str] = []
    parts: list[dict[str, Any]] = []
    following: Path | None = path
    while following is not None:
        _check_chain(chain, following)
        values = _read(following)
        words += [word for word in values if word not in words]
        values = upgrade(values, str(following))
        base = values.pop(EXTENDS, None)
        chain.append(following)
        parts.append(values)
        following = None if base is None else _base(following, base)
    if len(parts) > 1:
        parts[0].setdefault("name", path.stem)
    joined = parts.pop()
    while parts:
        joined = _joined(joined, parts.pop())
    return joined, [word for word in words if word != EXTENDS], chain


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})", "save the file as UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "check the file's rights and its disk") from None
    written = read_yaml(text, str(path))
    if written is None:  # empty, or comments alone: every default
        return {}
    if not isinstance(written, dict):
        raise UsageError(f"{path} does not hold a mapping", "write `section:` blocks with `key: value` lines")
    return written


def _shipped(name: str) -> Path | None:
    path = RECIPES / f"{name}.yaml"
    return path if not Path(name).suffix and path.parent == RECIPES and path.is_file() else None


def _base(path: Path, base: Any) -> Path:
    """The file of what a recipe extends."""
    remedy = f"name a shipped recipe ({', '.join(recipe_names())}), or a YAML file in the folder of this one"
    if not isinstance(base, str) or not base.strip():
        raise UsageError(f"{path}: extends is {short(told(base))}, no recipe", remedy)
    with contextlib.suppress(OSError, ValueError):
        if (shipped := _shipped(base)) is not None:
            return shipped
    parts = PurePosixPath(base.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or base.startswith("~"):
        raise UsageError(f"{path}: extends {short(base)} leads out of the folder of the recipe", remedy)
    found = path.parent / base
    try:
        reason = None if found.is_file() else f", and there is no such recipe{did_you_mean(base, recipe_names())}"
        if reason is None and path.parent.resolve() not in found.resolve().parents:
            reason = ", a link out of the folder of the recipe"
    except (OSError, ValueError) as error:  # no name of a file at all: too long, or with a NUL
        reason = f": {getattr(error, 'strerror', None) or 'it can be no name of a file'}"
    if reason is not None:
        raise UsageError(f"{path}: extends {short(base)}{reason}", remedy)
    return found


def _check_chain(chain: list[Path], following: Path) -> None:
    """Raises UsageError for a recipe that extends itself by way of others, and for a row that is too long."""
    names = " extends ".join(shown(each.name) for each in [*chain, following])
    if any(_same(each, following) for each in chain):
        raise UsageError(f"{chain[0]}: {names}: a circle", "take `extends` out of one of them")
    if len(chain) == MOST:
        raise UsageError(
            f"{chain[0]}: {names}: more than {MOST} recipes in a row", "extend one that is nearer to the first"
        )


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False


def _joined(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, key by key; a section with another `name` than that of `base` counts whole."""
    joined = dict(base)
    for key, value in over.items():
        below = base.get(key)
        if isinstance(below, dict) and isinstance(value, dict) and _alike(key, below, value):
            joined[key] = _joined(below, value)
        else:
            joined[key] = value
    return joined


def _alike(key: str, below: dict[str, Any], value: dict[str, Any]) -> bool:
    """Whether two sections have the same keys: those of one name, if `key` is one whose name decides them."""
    usual = MAIN["name"] if key in KINDS else None
    return bool(value.get("name", below.get("name", usual)) == below.get("name", usual))
