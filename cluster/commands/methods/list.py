"""`cardialign methods list`: the methods that a recipe may name, our own and those of installed packages."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cardialign.pretrain.config import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", nargs="*", help="names of methods (default: all)")
    parser.add_argument(
        "--cost",
        action="store_true",
        help="with the GFLOP that each recipe's encoder needs for one record of 10 s at 500 Hz (some 10 s for all)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.errors import UserError
    from cardialign.pretrain.choices import METHODS
    from cardialign.pretrain.config import load_config, recipe_names

    for unknown in (name for name in args.method if name not in METHODS):
        METHODS.find(unknown)  # says so, and what was meant
    configs = {name: load_config(name) for name in recipe_names()}
    methods: list[dict[str, Any]] = []
    for name in dict.fromkeys(args.method) or METHODS:
        try:
            method = METHODS.find(name)
            with METHODS.blamed(name, "cannot be asked"):
                facts = {"reports": bool(method.reports), "what": _first_line(method)}
        except UserError as error:  # a method of another package: the others are listed all the same
            methods.append({"name": name, "problem": error.problem})
            continue
        recipes = [recipe for recipe, config in configs.items() if config.method.name == name]
        cost = {"gflop": {recipe: _gflop(configs[recipe]) for recipe in recipes}} if args.cost else {}
        methods.append({"name": name, **facts, "recipes": recipes, **cost})
    return {"methods": methods}


def _gflop(config: RunConfig) -> float:
    """Of the encoder's forward pass of one record, the least size that benchmarks and `recipes list` speak of."""
    from cardialign.data_shards.record import SignalSpec
    from cardialign.pretrain.benchmarks.counts import count_encoder

    return round(count_encoder(config.encoder, SignalSpec(500, 10))[1] / 1e9, 4)


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
            costs = each.get("gflop", {})
            told = [f"{name} ({costs[name]:.2f} GFLOP)" if name in costs else name for name in each["recipes"]]
            lines += textwrap.wrap(", ".join(told), 110, initial_indent="    recipes: ", subsequent_indent="      ")
    return lines
