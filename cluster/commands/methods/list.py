"""`cardialign methods list`: the methods that a recipe may name, our own and those of installed packages."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # nothing to choose


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.errors import UserError
    from cardialign.pretrain.choices import METHODS
    from cardialign.pretrain.config import load_config, recipe_names

    of = {name: load_config(name).method.name for name in recipe_names()}
    methods: list[dict[str, Any]] = []
    for name in METHODS:
        try:
            method = METHODS.find(name)
            with METHODS.blamed(name, "cannot be asked"):
                facts = {"reports": bool(method.reports), "what": _first_line(method)}
        except UserError as error:  # a method of another package: the others are listed all the same
            methods.append({"name": name, "problem": error.problem})
            continue
        recipes = [recipe for recipe, its in of.items() if its == name]
        methods.append({"name": name, **facts, "recipes": recipes})
    return {"methods": methods}


def _first_line(method: type) -> str:
    """The first sentence about a method: that of its module, which names the source, or of its own."""
    for text in (getattr(sys.modules.get(method.__module__), "__doc__", None), method.__doc__):
        if isinstance(text, str) and text.strip():
            return " ".join(text.strip().partition("\n\n")[0].split())
    return ""


def summary(result: dict[str, Any]) -> list[str]:
    import textwrap

    from cardialign.data_shards.shown import shown

    lines = []
    for each in result["methods"]:
        if "problem" in each:
            lines += [f"{shown(each['name'])}: cannot be used: {shown(each['problem'])}"]
            continue
        lines.append(f"{shown(each['name'])}: {'reads reports' if each['reports'] else 'no reports'}")
        lines += textwrap.wrap(shown(each["what"]), 110, initial_indent="    ", subsequent_indent="    ")
        if each["recipes"]:
            lines += textwrap.wrap(
                ", ".join(each["recipes"]), 110, initial_indent="    recipes: ", subsequent_indent="      "
            )
    return lines
