"""`cardialign recipes diff`: the settings in which recipes differ."""

from __future__ import annotations

import argparse
from typing import Any

from cardialign.data_shards.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipes", nargs="+", metavar="RECIPE", help="two or more: names of shipped recipes, YAML files"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.comparison.costs import settings_that_differ
    from cardialign.pretrain.config import load_config

    names = list(map(str, args.recipes))
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError("recipes diff compares two or more different recipes", "name each of them once")
    found = settings_that_differ({name: load_config(name).resolved() for name in names})
    rows = [{"key": each.key, "values": {n: value for value, of in each.values for n in of}} for each in found]
    return {"recipes": names, "settings": [row for row in rows if row["key"] != "name"]}


def summary(result: dict[str, Any]) -> list[str]:
    names, rows = result["recipes"], result["settings"]
    if not rows:
        return [f"{' and '.join(names)} differ in nothing but their names"]
    table = [("setting", *names), *((row["key"], *(row["values"][name] for name in names)) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(names))]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]) for line in table
    ]
