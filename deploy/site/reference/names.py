"""The pages of the public Python names and of the methods, from their docstrings."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import cardialign
from cardialign.data_shards.plugins import thing_at
from cardialign.pretrain.choices import METHODS
from cardialign.pretrain.config import load_config, recipe_names
from deploy.site.reference.configuration import own
from deploy.site.reference.text import first_sentence, page, prose, table

INTRODUCTION = """`import cardialign` is all that a user's code writes; each name is imported when it is first used.
What lies under the package is ours to move. A wrong kind of argument is refused by name."""
GIVEN = {
    "open_shards": "cardialign.data_shards.shard_set.shard_set:ShardSet",
    "load_encoder": "cardialign.pretrain.export.loaded:LoadedEncoder",
}
"""Public function -> the class of what it gives, whose methods a user calls."""
OPTIONS = {
    "load_encoder": "cardialign.pretrain.export.given_signal:SignalForm",
    "evaluate": "cardialign.pretrain.evaluation.zero_shot:ZeroShotOptions",
}
"""Public function -> the arguments by name that it, or what it gives, takes (`**options`, `**form`)."""
METHODS_INTRODUCTION = """A recipe chooses one by `method.name`. Each has a page: the idea, the formula, what differs
from the paper and why. `cardialign methods list` prints this table for what is installed, `cardialign recipes list` the
parameters and the GFLOP of every recipe; [the configuration](../reference/configuration.md) has every key. What was
tried and what it was worth is in [METHODS](../../../../pretrain/METHODS.md)."""


def python() -> str:
    """The page `reference/python.md`."""
    parts = [INTRODUCTION]
    for name in cardialign.__all__:
        parts += _described(f"cardialign.{name}", thing_at(cardialign.NAMES[name]))
        if name in GIVEN:
            parts += _members(thing_at(GIVEN[name]))
        if name in OPTIONS:
            options = thing_at(OPTIONS[name])
            parts += [f"### {options.__name__}", prose(options.__doc__)]
    return page("Python: every public name", *parts)


def _described(name: str, thing: Any) -> list[str]:
    return [f"## {name}", f"```text\n{name.rpartition('.')[2]}{_signature(thing)}\n```", prose(inspect.getdoc(thing))]


def _members(cls: type) -> list[str]:
    """What it gives, and the methods of that."""
    parts = [f"It gives a `{cls.__name__}`.", prose(cls.__doc__)]
    for name, member in vars(cls).items():
        if name.startswith("_") or not inspect.getdoc(member) or not (inspect.isfunction(member) or _property(member)):
            continue
        call = "" if _property(member) else _signature(member)
        parts += [
            f"### {cls.__name__}.{name}",
            f"```text\n{name}{call}\n```" if call else "",
            prose(inspect.getdoc(member)),
        ]
    return parts


def _property(member: Any) -> bool:
    return isinstance(member, property) or type(member).__name__ == "cached_property"


def _signature(thing: Any) -> str:
    """Its arguments in one line or one each, without the modules of their types."""
    shown = inspect.signature(thing)
    words = [_argument(each) for each in shown.parameters.values() if each.name != "self"]
    given = shown.return_annotation
    tail = "" if inspect.isclass(thing) or given is inspect.Signature.empty else f" -> {_kind(given)}"
    line = f"({', '.join(words)}){tail}"
    return line if len(line) < 90 else "(\n" + "".join(f"    {each},\n" for each in words) + f"){tail}"


def _argument(parameter: inspect.Parameter) -> str:
    kind = "" if parameter.annotation is inspect.Parameter.empty else f": {_kind(parameter.annotation)}"
    default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return f"{stars.get(parameter.kind, '')}{parameter.name}{kind}{default.replace('<factory>', '...')}"


def _kind(annotation: Any) -> str:
    """A type as it is written, without its module."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", text)


def methods() -> str:
    """The page `methods/index.md`."""
    of = {name: load_config(name).method.name for name in recipe_names()}
    rows = []
    for name in own(METHODS):
        method = METHODS.find(name)
        recipes = [f"`{recipe}`" for recipe, its in of.items() if its == name]
        told = first_sentence(sys.modules[method.__module__].__doc__).replace("<", "\\<")
        rows.append(
            [f"[{name}]({name}.md)", "reads reports" if method.reports else "signal alone", told, ", ".join(recipes)]
        )
    return page("Methods", METHODS_INTRODUCTION, table(["method", "needs", "what it asks", "recipes"], rows))
